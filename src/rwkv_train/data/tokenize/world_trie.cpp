// Greedy longest match over the World vocabulary, many texts a call; loaded by world_trie.py.
//
// The vocabulary is a trie in one array (a "double array" whose second array is the label byte):
// the child of node s by byte c lies at s.base + c, and is there if that entry is labelled c. This
// is unambiguous because no two nodes have the same base. 8 bytes an entry, 1.1 MB in all, so that
// the walk stays in the processor's second-level cache. Walking several texts side by side without
// branches was a third slower (2026-11-20).

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Entry {
  uint32_t base;  // 0: no children
  uint16_t id;    // 0: no token ends here
  uint8_t label;
  uint8_t used;
};
static_assert(sizeof(Entry) == 8, "world_trie.py reserves 8 bytes an entry");

constexpr uint32_t kRoot = 0;

// The tokens [begin, end) of a sorted vocabulary, which share their first `depth` bytes.
struct Node {
  uint32_t place;
  int64_t begin, end;
  int64_t depth;
};

class Builder {
 public:
  Builder(const uint8_t* bytes, const int64_t* starts, const uint16_t* ids, Entry* trie,
          int64_t capacity)
      : bytes_(bytes), starts_(starts), ids_(ids), trie_(trie), capacity_(capacity),
        base_taken_(capacity, false) {}

  // Entries in use, or -1 when there are too few.
  int64_t build(int64_t tokens) {
    std::memset(trie_, 0, capacity_ * sizeof(Entry));
    trie_[kRoot].used = 1;
    used_ = 1;
    std::vector<Node> nodes{{kRoot, 0, tokens, 0}};
    // Breadth first: the nodes with many children come while there is much room.
    for (size_t at = 0; at < nodes.size(); at++) {
      if (!place_children(nodes[at], nodes)) return -1;
    }
    return used_;
  }

 private:
  bool place_children(Node node, std::vector<Node>& nodes) {
    while (node.begin < node.end && length(node.begin) == node.depth) {
      trie_[node.place].id = ids_[node.begin++];
    }
    if (node.begin == node.end) return true;
    std::vector<Node> children;
    std::vector<uint8_t> labels;
    for (int64_t token = node.begin; token < node.end; token++) {
      const uint8_t label = bytes_[starts_[token] + node.depth];
      if (labels.empty() || labels.back() != label) {
        labels.push_back(label);
        children.push_back({0, token, token, node.depth + 1});
      }
      children.back().end = token + 1;
    }
    const int64_t base = free_base(labels);
    if (base < 0) return false;
    trie_[node.place].base = static_cast<uint32_t>(base);
    base_taken_[base] = true;
    for (size_t child = 0; child < children.size(); child++) {
      children[child].place = static_cast<uint32_t>(base + labels[child]);
      trie_[children[child].place].label = labels[child];
      trie_[children[child].place].used = 1;
      used_ = std::max<int64_t>(used_, children[child].place + 1);
      nodes.push_back(children[child]);
    }
    return true;
  }

  // A base that is not taken and leaves room for all labels. Nodes of as many children are placed
  // one behind another, which wastes little and makes the search linear; the many with one child
  // fill what the others left.
  int64_t free_base(const std::vector<uint8_t>& labels) {
    int64_t& place = cursor_[labels.size()];
    for (place = std::max<int64_t>(place, labels[0] + 1);; place++) {
      const int64_t base = place - labels[0];
      if (base + 256 > capacity_) return -1;
      if (base_taken_[base]) continue;
      bool fits = true;
      for (const uint8_t label : labels) fits = fits && !trie_[base + label].used;
      if (fits) return base;
    }
  }

  int64_t length(int64_t token) const { return starts_[token + 1] - starts_[token]; }

  const uint8_t* bytes_;
  const int64_t* starts_;
  const uint16_t* ids_;
  Entry* trie_;
  int64_t capacity_;
  std::vector<bool> base_taken_;
  // By number of children, where the search for a place goes on.
  std::array<int64_t, 257> cursor_{};
  int64_t used_ = 0;
};

}  // namespace

extern "C" {

// Fills `trie` from tokens sorted by their bytes: bytes[starts[i] .. starts[i + 1]) has ids[i].
// Returns the number of entries in use, or -1 when `capacity` is too small.
int64_t build_trie(const uint8_t* bytes, const int64_t* starts, const uint16_t* ids,
                   int64_t tokens, void* trie, int64_t capacity) {
  return Builder(bytes, starts, ids, static_cast<Entry*>(trie), capacity).build(tokens);
}

// Ids of the texts bytes[0 .. ends[0]), bytes[ends[0] .. ends[1]) ..., one after another, behind
// a text a 0 if `closed`. Every single byte must be a token. `ids` has room for one id a byte and
// text; sizes[i] becomes the number of ids of text i. Returns their sum.
int64_t encode_texts(const void* memory, const uint8_t* bytes, const int64_t* ends,
                     const uint8_t* closed, int64_t texts, uint16_t* ids, int64_t* sizes) {
  const Entry* trie = static_cast<const Entry*>(memory);
  const uint32_t root = trie[kRoot].base;
  uint16_t* out = ids;
  const uint8_t* at = bytes;
  for (int64_t text = 0; text < texts; text++) {
    const uint8_t* const end = bytes + ends[text];
    uint16_t* const begin = out;
    while (at < end) {
      const Entry* entry = &trie[root + *at];
      const uint8_t* next = ++at;
      uint16_t id = entry->id;
      while (next < end && entry->base != 0) {
        const uint8_t byte = *next++;
        entry = &trie[entry->base + byte];
        if (!entry->used || entry->label != byte) break;
        if (entry->id != 0) {
          id = entry->id;
          at = next;
        }
      }
      *out++ = id;
    }
    if (closed[text]) *out++ = 0;
    sizes[text] = out - begin;
  }
  return out - ids;
}

// The first text with `checked` whose ids (as `encode_texts` gives them) do not stand for exactly
// its bytes, or -1. token_bytes[token_starts[id] .. token_starts[id + 1]) are the bytes of an id.
int64_t first_inexact(const uint8_t* token_bytes, const int64_t* token_starts,
                      const uint8_t* bytes, const int64_t* ends, const uint8_t* checked,
                      int64_t texts, const uint16_t* ids, const int64_t* sizes) {
  const uint8_t* at = bytes;
  for (int64_t text = 0; text < texts; text++) {
    const uint8_t* const end = bytes + ends[text];
    if (checked[text]) {
      for (int64_t i = 0; i < sizes[text]; i++) {
        const int64_t start = token_starts[ids[i]];
        const int64_t length = token_starts[ids[i] + 1] - start;
        if (length > end - at || std::memcmp(at, token_bytes + start, length) != 0) return text;
        at += length;
      }
      if (at != end) return text;
    }
    at = end;
    ids += sizes[text];
  }
  return -1;
}

}  // extern "C"

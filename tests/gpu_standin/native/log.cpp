// The log, and what is read from the environment.
#include "standin.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace standin {
namespace {

constexpr size_t kLineBytes = 4096;
constexpr size_t kGiB = size_t{1} << 30;

constexpr Card kCards[] = {
    {"H100", 9, 0, 132, 2048, 32, 227 << 10, 228 << 10, 80 * kGiB},
    {"RTX3090", 8, 6, 82, 1536, 16, 99 << 10, 100 << 10, 24 * kGiB},
    {"T4", 7, 5, 40, 1024, 16, 64 << 10, 64 << 10, 16 * kGiB},
};

// A forked process has the descriptor of the one it was copied from and needs its own file.
int descriptor() {
  static int file = -1;
  static pid_t owner = 0;
  if (owner != getpid()) {
    owner = getpid();
    const char* path = std::getenv("STANDIN_LOG");
    const std::string name = path ? std::string(path) + "." + std::to_string(owner) : "";
    file = path ? open(name.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
  }
  return file;
}

size_t format_line(char* line, const char* format, va_list arguments) {
  const int length = std::vsnprintf(line, kLineBytes - 1, format, arguments);
  const size_t end = static_cast<size_t>(length) < kLineBytes - 1 ? length : kLineBytes - 2;
  line[end] = '\n';
  return end + 1;
}

// One call per line: lines of several threads do not mix, and a killed process has told all.
void put(int file, const char* line, size_t bytes) {
  if (file >= 0 && write(file, line, bytes) < 0) std::abort();
}

}  // namespace

const Card& card() {
  const char* wanted = std::getenv("STANDIN_CARD");
  for (const Card& known : kCards) {
    if (wanted == nullptr || std::strcmp(known.name, wanted) == 0) return known;
  }
  give_up("STANDIN_CARD=%s is not in the table of log.cpp", wanted);
}

int card_count() {
  const char* wanted = std::getenv("STANDIN_CARDS");
  return wanted ? std::atoi(wanted) : 1;
}

void log_line(const char* format, ...) {
  const int file = descriptor();
  if (file < 0) return;
  char line[kLineBytes];
  va_list arguments;
  va_start(arguments, format);
  put(file, line, format_line(line, format, arguments));
  va_end(arguments);
}

void give_up(const char* format, ...) {
  char line[kLineBytes] = "fault ";
  const size_t prefix = std::strlen(line);
  char text[kLineBytes - 16];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const int rest = std::snprintf(line + prefix, sizeof line - prefix, "%s\n", text);
  put(descriptor(), line, prefix + rest);
  put(STDERR_FILENO, line, prefix + rest);
  std::abort();
}

}  // namespace standin

// Where a step begins, for whoever reads the log.
STANDIN_EXPORT void standin_mark(const char* text) { standin::log_line("mark %s", text); }

// Called by the functions that torch has and the stand-in has not (libraries.py makes them).
STANDIN_EXPORT void standin_missing(const char* name) {
  standin::log_line("missing %s", name);
}

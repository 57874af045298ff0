// cuBLAS: products do nothing, and the memory that they would write holds zeros already.
#include "standin.h"

#include <cublasLt.h>
#include <cublas_v2.h>

#include <cstdlib>
#include <cstring>

namespace {

constexpr cublasStatus_t kDone = CUBLAS_STATUS_SUCCESS;
constexpr size_t kObjectBytes = 256;

template <typename Object> cublasStatus_t make(Object* object) {
  *object = static_cast<Object>(std::calloc(1, kObjectBytes));
  return kDone;
}

cublasStatus_t drop(void* object) {
  std::free(object);
  return kDone;
}

cublasStatus_t product(const char* function, int m, int n, int k) {
  standin::log_line("product %s %d %d %d", function, m, n, k);
  return kDone;
}

}  // namespace

STANDIN_EXPORT cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) { return make(handle); }
STANDIN_EXPORT cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) { return drop(handle); }
STANDIN_EXPORT cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t) { return kDone; }
STANDIN_EXPORT cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void*, size_t) {
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasSetSmCountTarget(cublasHandle_t, int) { return kDone; }
STANDIN_EXPORT cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return kDone; }
STANDIN_EXPORT cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
  *mode = CUBLAS_DEFAULT_MATH;
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t, cublasPointerMode_t) {
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) {
  *mode = CUBLAS_POINTER_MODE_HOST;
  return kDone;
}

STANDIN_EXPORT cublasStatus_t cublasGemmEx(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void*,
    const void*, cudaDataType, int, const void*, cudaDataType, int, const void*, void*,
    cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t) {
  return product("GemmEx", m, n, k);
}
STANDIN_EXPORT cublasStatus_t cublasSgemm_v2(cublasHandle_t, cublasOperation_t, cublasOperation_t,
                                             int m, int n, int k, const float*, const float*, int,
                                             const float*, int, const float*, float*, int) {
  return product("Sgemm", m, n, k);
}
STANDIN_EXPORT cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void*,
    const void*, cudaDataType, int, long long, const void*, cudaDataType, int, long long,
    const void*, void*, cudaDataType, int, long long, int, cublasComputeType_t,
    cublasGemmAlgo_t) {
  return product("GemmStridedBatchedEx", m, n, k);
}
STANDIN_EXPORT cublasStatus_t cublasSgemmStridedBatched(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float*,
    const float*, int, long long, const float*, int, long long, const float*, float*, int,
    long long, int) {
  return product("SgemmStridedBatched", m, n, k);
}

STANDIN_EXPORT cublasStatus_t cublasSdot_v2(cublasHandle_t, int n, const float*, int,
                                            const float*, int, float*) {
  return product("Sdot", 1, 1, n);
}
STANDIN_EXPORT cublasStatus_t cublasDotEx(cublasHandle_t, int n, const void*, cudaDataType, int,
                                          const void*, cudaDataType, int, void*, cudaDataType,
                                          cudaDataType) {
  return product("DotEx", 1, 1, n);
}
STANDIN_EXPORT cublasStatus_t cublasSgemv_v2(cublasHandle_t, cublasOperation_t, int m, int n,
                                             const float*, const float*, int, const float*, int,
                                             const float*, float*, int) {
  return product("Sgemv", m, 1, n);
}
STANDIN_EXPORT cublasStatus_t cublasStrsmBatched(
    cublasHandle_t, cublasSideMode_t, cublasFillMode_t, cublasOperation_t, cublasDiagType_t, int m,
    int n, const float*, const float* const*, int, float* const*, int, int) {
  return product("StrsmBatched", m, n, m);
}

STANDIN_EXPORT size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
STANDIN_EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description,
                                                       cublasComputeType_t, cudaDataType_t) {
  return make(description);
}
STANDIN_EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  return drop(description);
}
STANDIN_EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t,
                                                             cublasLtMatmulDescAttributes_t,
                                                             const void*, size_t) {
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout,
                                                         cudaDataType, uint64_t rows,
                                                         uint64_t columns, int64_t) {
  make(layout);
  const uint64_t shape[] = {rows, columns};
  std::memcpy(*layout, shape, sizeof shape);
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return drop(layout);
}
STANDIN_EXPORT cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t,
                                                               cublasLtMatrixLayoutAttribute_t,
                                                               const void*, size_t) {
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  return make(made);
}
STANDIN_EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t made) {
  return drop(made);
}
STANDIN_EXPORT cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void*, size_t) {
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
    cublasLtMatmulHeuristicResult_t* results, int* count) {
  results[0] = {};
  *count = 1;
  return kDone;
}
STANDIN_EXPORT cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*,
    cublasLtMatrixLayout_t first, const void*, cublasLtMatrixLayout_t, const void*, const void*,
    cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t result, const cublasLtMatmulAlgo_t*,
    void*, size_t, cudaStream_t) {
  uint64_t a[2], d[2];
  std::memcpy(a, first, sizeof a);
  std::memcpy(d, result, sizeof d);
  // Which side of the first matrix is summed over depends on its transposition; shown is a size.
  const uint64_t inner = a[0] == d[0] ? a[1] : a[0];
  return product("LtMatmul", static_cast<int>(d[0]), static_cast<int>(d[1]),
                 static_cast<int>(inner));
}

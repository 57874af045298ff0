// libcuda.so.1, which torch opens by name: the one context there is.
#include <cuda.h>

#define STANDIN_EXPORT extern "C" __attribute__((visibility("default")))

STANDIN_EXPORT CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
STANDIN_EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  static int only;
  *context = reinterpret_cast<CUcontext>(&only);
  return CUDA_SUCCESS;
}
STANDIN_EXPORT CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
STANDIN_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

/* A plain C program on the driver API: built by gcc against libcuda.so, with no knowledge of this device. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(call) check(call, #call, __LINE__)

static void check(CUresult result, const char* what, int line) {
  if (result == CUDA_SUCCESS) return;
  const char *name = "?", *text = "?";
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  fprintf(stderr, "line %d: %s gave %s: %s\n", line, what, name, text);
  exit(1);
}

static void expect(CUresult result, CUresult wanted, int line) {
  if (result == wanted) return;
  fprintf(stderr, "line %d: got %d, expected %d\n", line, result, wanted);
  exit(1);
}
#define EXPECT(call, wanted) expect(call, wanted, __LINE__)

static char* read_file(const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  char* text = malloc(size + 1);
  if (fread(text, 1, size, file) != (size_t)size) exit(2);
  text[size] = 0;
  fclose(file);
  return text;
}

static void CUDA_CB count(void* data) { ++*(int*)data; }

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  CUdevice device;
  CUcontext context;
  CUmodule module;
  CUfunction scale, big, spill;
  char name[64];
  int value, n = 1000;
  size_t bytes = n * sizeof(float);

  EXPECT(cuDeviceGet(&device, 0), CUDA_ERROR_NOT_INITIALIZED);
  CHECK(cuInit(0));
  CHECK(cuDriverGetVersion(&value));
  CHECK(cuDeviceGetCount(&value));
  CHECK(cuDeviceGet(&device, 0));
  EXPECT(cuDeviceGet(&device, 1), CUDA_ERROR_INVALID_DEVICE);
  CHECK(cuDeviceGetName(name, sizeof name, device));
  if (strncmp(name, "vgpu", 4)) return 3;
  EXPECT(cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
  CHECK(cuCtxCreate(&context, NULL, 0, device));

  /* Images that are not PTX for this card. */
  EXPECT(cuModuleLoadData(&module, "\x7f" "ELF............"), CUDA_ERROR_NO_BINARY_FOR_GPU);
  EXPECT(cuModuleLoadData(&module, "hello"), CUDA_ERROR_INVALID_IMAGE);
  char log[256] = "";
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  void* values[] = {log, (void*)sizeof log};
  const char* odd = ".version 8.0\n.target sm_80\n.address_size 64\n.entry k() {\n  frobnicate.u32 %r1;\n}\n";
  EXPECT(cuModuleLoadDataEx(&module, odd, 2, options, values), CUDA_ERROR_INVALID_PTX);
  if (!strstr(log, "line 5") || !strstr(log, "frobnicate")) return 4;
  EXPECT(cuModuleLoadData(&module, ".version 8.0\n.target sm_120\n.address_size 64\n.entry k() { ret; }"), CUDA_ERROR_NO_BINARY_FOR_GPU);

  char* ptx = read_file(argv[1]);
  CHECK(cuModuleLoadData(&module, ptx));
  CHECK(cuModuleGetFunction(&scale, module, "scale"));
  CHECK(cuModuleGetFunction(&big, module, "needs_dynamic_shared"));
  CHECK(cuModuleGetFunction(&spill, module, "out_of_bounds"));
  EXPECT(cuModuleGetFunction(&spill, module, "absent"), CUDA_ERROR_NOT_FOUND);

  /* Synchronous copies, default stream, both ways to pass arguments. */
  float *x = malloc(bytes), *y = malloc(bytes), factor = 3;
  for (int i = 0; i < n; i++) x[i] = i;
  CUdeviceptr dx, dy;
  CHECK(cuMemAlloc(&dx, bytes));
  CHECK(cuMemAlloc(&dy, bytes));
  CHECK(cuMemcpyHtoD(dx, x, bytes));
  void* args[] = {&dx, &dy, &factor, &n};
  CHECK(cuLaunchKernel(scale, (n + 127) / 128, 1, 1, 128, 1, 1, 0, NULL, args, NULL));
  CHECK(cuMemcpyDtoH(y, dy, bytes));
  for (int i = 0; i < n; i++)
    if (y[i] != 3.f * i) return 5;
  struct { CUdeviceptr x, y; float factor; int n; } packed = {dx, dy, 5, n};
  size_t size = sizeof packed;
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &packed, CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END};
  CHECK(cuLaunchKernel(scale, (n + 127) / 128, 1, 1, 128, 1, 1, 0, NULL, NULL, extra));
  CHECK(cuMemcpyDtoH(y, dy, bytes));
  for (int i = 0; i < n; i++)
    if (y[i] != 5.f * i) return 6;
  size = 8;
  EXPECT(cuLaunchKernel(scale, 1, 1, 1, 128, 1, 1, 0, NULL, NULL, extra), CUDA_ERROR_INVALID_VALUE);
  EXPECT(cuLaunchKernel(scale, 1, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);

  /* Launches beyond the limits. */
  EXPECT(cuLaunchKernel(scale, 1, 1, 1, 2048, 1, 1, 0, NULL, args, NULL), CUDA_ERROR_INVALID_VALUE);
  EXPECT(cuLaunchKernel(scale, 0, 1, 1, 32, 1, 1, 0, NULL, args, NULL), CUDA_ERROR_INVALID_VALUE);
  void* big_args[] = {&dy};
  EXPECT(cuLaunchKernel(big, 1, 1, 1, 32, 1, 1, 64 << 10, NULL, big_args, NULL), CUDA_ERROR_INVALID_VALUE);
  CHECK(cuFuncSetAttribute(big, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 64 << 10));
  CHECK(cuLaunchKernel(big, 1, 1, 1, 32, 1, 1, 64 << 10, NULL, big_args, NULL));
  EXPECT(cuFuncSetAttribute(big, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 300 << 10), CUDA_ERROR_INVALID_VALUE);

  /* Variables of the module. */
  CUdeviceptr table;
  CHECK(cuModuleGetGlobal(&table, &size, module, "table"));
  if (size != 16) return 7;
  float four[4];
  CHECK(cuMemcpyDtoH(four, table, size));
  if (four[2] != 3.f) return 8;

  /* Streams, events, pools, host functions. */
  CUstream stream, other;
  CUevent ready;
  CUdeviceptr dz;
  float* pinned;
  int called = 0;
  CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  CHECK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
  CHECK(cuEventCreate(&ready, CU_EVENT_DISABLE_TIMING));
  CHECK(cuMemHostAlloc((void**)&pinned, bytes, 0));
  CHECK(cuMemAllocAsync(&dz, bytes, stream));
  packed.y = dz;
  size = sizeof packed;
  CHECK(cuLaunchKernel(scale, (n + 127) / 128, 1, 1, 128, 1, 1, 0, stream, NULL, extra));
  CHECK(cuLaunchHostFunc(stream, count, &called));
  CHECK(cuEventRecord(ready, stream));
  CHECK(cuStreamWaitEvent(other, ready, 0));
  CHECK(cuMemcpyDtoHAsync(pinned, dz, bytes, other));
  CHECK(cuStreamSynchronize(other));
  if (called != 1 || pinned[7] != 35.f) return 9;
  CHECK(cuMemFreeAsync(dz, stream));
  EXPECT(cuMemFreeAsync(dz, stream), CUDA_ERROR_INVALID_VALUE);
  CHECK(cuStreamSynchronize(stream));

  /* Capture, instantiate, launch twice; what is illegal meanwhile. */
  CUgraph graph;
  CUgraphExec exec;
  CHECK(cuMemsetD32(dy, 0, n));
  CHECK(cuCtxSynchronize());
  CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
  packed.y = dy;
  CHECK(cuLaunchKernel(scale, (n + 127) / 128, 1, 1, 128, 1, 1, 0, stream, NULL, extra));
  CHECK(cuMemcpyDtoDAsync(dx, dy, bytes, stream));
  CHECK(cuStreamEndCapture(stream, &graph));
  CHECK(cuMemcpyDtoH(y, dy, bytes));
  if (y[1] != 0.f) return 10;
  CHECK(cuGraphInstantiate(&exec, graph, 0));
  CHECK(cuGraphLaunch(exec, stream));
  CHECK(cuGraphLaunch(exec, stream));
  CHECK(cuStreamSynchronize(stream));
  CHECK(cuMemcpyDtoH(y, dy, bytes));
  if (y[1] != 25.f) return 11;
  CHECK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
  EXPECT(cuStreamSynchronize(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EXPECT(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

  /* Functions by name. */
  CUresult (*synchronise)(void);
  CUdriverProcAddressQueryResult status;
  CHECK(cuGetProcAddress("cuCtxSynchronize", (void**)&synchronise, 12000, 0, &status));
  CHECK(synchronise());

  int blocks;
  CHECK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale, 256, 0));
  if (blocks < 1) return 12;

  /* A fault ends the context with the driver's code, and a new context works. */
  CHECK(cuModuleGetFunction(&spill, module, "out_of_bounds"));
  void* spill_args[] = {&dy, &n};
  CHECK(cuLaunchKernel(spill, 1, 1, 1, 32, 1, 1, 0, NULL, spill_args, NULL));
  EXPECT(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
  EXPECT(cuMemAlloc(&dz, 16), CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK(cuCtxDestroy(context));
  CHECK(cuCtxCreate(&context, NULL, 0, device));
  CHECK(cuMemAlloc(&dx, bytes));
  EXPECT(cuLaunchKernel(scale, 1, 1, 1, 32, 1, 1, 0, NULL, args, NULL), CUDA_ERROR_INVALID_HANDLE);
  CHECK(cuModuleLoadData(&module, ptx));
  CHECK(cuModuleUnload(module));
  EXPECT(cuModuleGetFunction(&scale, module, "scale"), CUDA_ERROR_INVALID_HANDLE);
  EXPECT(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);

  /* Pinned memory that changes under an asynchronous copy. */
  CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  CHECK(cuMemHostAlloc((void**)&pinned, bytes, 0));
  memset(pinned, 0, bytes);
  CHECK(cuMemcpyHtoDAsync(dx, pinned, bytes, stream));
  pinned[3] = 1;
  EXPECT(cuStreamSynchronize(stream), CUDA_ERROR_LAUNCH_FAILED);
  CHECK(cuCtxDestroy(context));
  puts("all is well");
  return 0;
}

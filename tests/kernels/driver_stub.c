// A driver without a GPU: answers the calls of kernels.backends.cuda_driver and prints what it was given.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int cuInit(unsigned flags) { return 0; }

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}

int cuModuleLoadData(void** module, const void* image) {
    *module = (void*)0x2000;
    return memcmp(image, "\x7f" "ELF", 4) ? 200 : 0;  // CUDA_ERROR_INVALID_IMAGE
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    *function = (void*)0x3000;
    printf("{\"function\": \"%s\"}\n", name);
    return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
    printf("{\"attribute\": [%d, %d]}\n", attribute, value);
    return 0;
}

int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* dims,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave,
                           int swizzle, int promotion, int fill) {
    if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || strides[0] % 16 || box[0] > 256 || box[1] > 256) return 1;
    printf("{\"map\": [%d, %u, %lu, %lu, %lu, %u, %u, %u, %u, %d, %d, %d]}\n", type, rank, dims[0], dims[1],
           strides[0], box[0], box[1], steps[0], steps[1], interleave, swizzle, fill);
    for (int i = 0; i < 16; ++i) ((uint64_t*)map)[i] = (uint64_t)address + i;
    return 0;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
    if (shared == 1) return 719;  // CUDA_ERROR_LAUNCH_FAILED
    printf("{\"launch\": [%lu, %u, %u, %u, %u, %u, %u, %u, %lu, %d], \"first\": %lu, \"last word\": %lu}\n",
           (uintptr_t)function, x, y, z, bx, by, bz, shared, (uintptr_t)stream, extra != 0,
           bx == 32 ? 0 : *(uint64_t*)arguments[0], bx == 32 ? 0 : ((uint64_t*)arguments[0])[bx == 384 ? 15 : 0]);
    return 0;
}

static int unknown(void) { return 999; }

int cuGetProcAddress_v2(const char* name, void** found, int version, uint64_t flags, int* status) {
    void* self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    *found = strcmp(name, "cuGetProcAddress") ? dlsym(self, name) : (void*)cuGetProcAddress_v2;
    if (!*found) *found = (void*)unknown;
    if (status) *status = 0;
    return 0;
}

int cuGetProcAddress(const char* name, void** found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}

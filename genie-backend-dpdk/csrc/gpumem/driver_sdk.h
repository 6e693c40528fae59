// What DPDK gives to drivers of GPUDev. It exports the functions (version INTERNAL of librte_gpudev) for drivers outside
// its tree, and installs their header, gpudev_driver.h, only where it was built with `enable_driver_sdk`, from 23.11 on.
// Elsewhere these are the parts of that header that a driver needs, as they are from 22.11 to 26.07; `gpudev.cpp` looks
// at run time whether the library is of the same mind.
#pragma once

#define ALLOW_EXPERIMENTAL_API
#define ALLOW_INTERNAL_API

#include <rte_config.h>
#include <rte_version.h>

#if __has_include(<rte_gpudev.h>)
#include <rte_gpudev.h>
#if __has_include(<gpudev_driver.h>)
#define GENIE_GPUDEV 1
extern "C" {
#include <gpudev_driver.h>
}
#elif RTE_VERSION >= RTE_VERSION_NUM(22, 11, 0, 0) && RTE_VERSION < RTE_VERSION_NUM(26, 11, 0, 0)
#define GENIE_GPUDEV 1
#include <rte_dev.h>

extern "C" {

enum rte_gpu_state { RTE_GPU_STATE_UNUSED, RTE_GPU_STATE_INITIALIZED };

struct rte_gpu_ops {
    int (*dev_info_get)(struct rte_gpu*, struct rte_gpu_info*);
    int (*dev_close)(struct rte_gpu*);
    int (*mem_alloc)(struct rte_gpu*, size_t size, unsigned align, void** at);
    int (*mem_free)(struct rte_gpu*, void* at);
    int (*mem_register)(struct rte_gpu*, size_t size, void* at);
    int (*mem_unregister)(struct rte_gpu*, void* at);
    int (*mem_cpu_map)(struct rte_gpu*, size_t size, void* at, void** mapped);
    int (*mem_cpu_unmap)(struct rte_gpu*, void* at);
    int (*wmb)(struct rte_gpu*);
};

struct rte_gpu_mpshared {
    char name[RTE_DEV_NAME_MAX_LEN];
    void* dev_private;
    struct rte_gpu_info info;
    uint16_t process_refcnt;
};

struct rte_gpu {
    struct rte_device* device;
    struct rte_gpu_mpshared* mpshared;
    struct rte_gpu_ops ops;
    struct {
        void* first;
        void** last;
    } callbacks;
    enum rte_gpu_state process_state;
    void* process_private;
} __rte_aligned(RTE_CACHE_LINE_SIZE);

struct rte_gpu* rte_gpu_get_by_name(const char* name);
struct rte_gpu* rte_gpu_allocate(const char* name);
void rte_gpu_complete_new(struct rte_gpu* dev);
int rte_gpu_release(struct rte_gpu* dev);
}
#endif
#endif

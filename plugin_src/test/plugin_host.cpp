// Drives the plugin library as TensorRT would, without TensorRT:
//   plugin_host LIBRARY
//   LD_PRELOAD=LIBRARY plugin_host          says only whether the registry has the creators then
//
// libnvinfer is the first of that name: the stand-in of fake_nvinfer.cpp, or TensorRT's own, whose registry is then
// put to the test. Without a GPU everything but the computation of `enqueue` runs.

#include "plugin_host.h"

#include <dlfcn.h>

#include <cstdlib>

using namespace nvinfer1;

#define HAS_LOAD_LIBRARY (NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6)

namespace {

constexpr char const* kDeformable = "CodetrMsDeformAttn";
constexpr char const* kWindow = "CodetrWindowAttention";

// Whether the registry has the creators of all plugins, or of none.
bool hasAll() { return creator(kDeformable) && creator(kWindow); }
bool hasNone() { return !creator(kDeformable) && !creator(kWindow); }

Plugin makeDeformable(std::vector<int32_t> const& shapes = {4, 6}) { return makePlugin(kDeformable, {field("spatial_shapes", shapes)}); }

Plugin makeWindow() {
    std::vector<int32_t> const size = {12}, shift = {6};
    return makePlugin(kWindow, {field("window_size", size), field("shift", shift)});
}

bool makesBoth() { return makeDeformable() && makeWindow(); }

// The ways to load a library, in turn, and both at once.
void testLoading(char const* path) {
    void* const first = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void* const second = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    check(first != nullptr && first == second && makesBoth(), "a library opened twice makes plugins");
    dlclose(second);
    check(makesBoth(), "a library closed once of two times makes plugins");
    dlclose(first);
    check(hasNone(), "unloading takes the creators back");
    void* const again = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    check(again != nullptr && makesBoth(), "a reloaded library makes plugins");

#if HAS_LOAD_LIBRARY
    auto* const registry = getPluginRegistry();
    auto handle = registry->loadLibrary(path);
    check(handle != nullptr && makesBoth(), "loadLibrary takes a library that is loaded already");
    if (handle) registry->deregisterLibrary(handle);
    check(hasNone(), "deregisterLibrary takes its creators out");
    dlclose(again);
    for (char const* const what : {"loadLibrary registers the creators", "loadLibrary registers them a second time"}) {
        handle = registry->loadLibrary(path);
        check(handle != nullptr && makeDeformable().fromPlan() && makeWindow().fromPlan(), what);
        check(!makeDeformable({37, 0}), "its creator refuses wrong fields");
        check(registry->loadLibrary(path) == nullptr && makesBoth(), "loadLibrary refuses the same library twice, and keeps it");
        if (handle) registry->deregisterLibrary(handle);
        check(hasNone() && dlopen(path, RTLD_NOW | RTLD_NOLOAD) == nullptr, "deregisterLibrary unloads it");
    }
#else
    dlclose(again);
#endif
}

}  // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a crash loses no line
    Dl_info nvinfer{};
    dladdr(reinterpret_cast<void*>(&getPluginRegistry), &nvinfer);
    std::printf("registry of %s\n", nvinfer.dli_fname);
    if (argc == 1) {
        check(hasAll() && makesBoth(), "a preloaded library has registered its creators");
#if HAS_LOAD_LIBRARY
        char const* const preloaded = std::getenv("LD_PRELOAD");
        check(preloaded && getPluginRegistry()->loadLibrary(preloaded) && makesBoth(), "loadLibrary takes a preloaded library");
#endif
        return failed;
    }
    if (argc != 2) {
        std::printf("usage: plugin_host LIBRARY\n");
        return 2;
    }
    void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::printf("FAIL %s\n", dlerror());
        return 1;
    }
    int devices = 0;
    bool const gpu = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
    check(hasAll(), "the library registers its creators when it is loaded");
    testMsDeformAttn(gpu);
    testWindowAttn(gpu);

    dlclose(library);
    check(hasNone(), "closing the library takes the creators back");
    testLoading(argv[1]);

    std::printf("%s\n", gpu ? "enqueue was run" : "enqueue was skipped: no GPU");
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}

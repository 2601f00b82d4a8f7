// Stands in for libnvinfer in tests: the two symbols a plugin library needs, and the registry behind them, which
// refuses a name that it has, as TensorRT's does.

#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace {

class Registry final : public nvinfer1::IPluginRegistry {
public:
    bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, nvinfer1::AsciiChar const* const) noexcept override {
        auto const& v3 = static_cast<nvinfer1::IPluginCreatorV3One&>(creator);
        if (getCreator(v3.getPluginName(), v3.getPluginVersion(), "")) return false;
        creators_.push_back(&creator);
        return true;
    }
    bool deregisterCreator(nvinfer1::IPluginCreatorInterface const& creator) noexcept override {
        auto const found = std::find(creators_.begin(), creators_.end(), &creator);
        if (found == creators_.end()) return false;
        creators_.erase(found);
        return true;
    }
    nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* const count) const noexcept override {
        *count = static_cast<int32_t>(creators_.size());
        return creators_.data();
    }
    nvinfer1::IPluginCreatorInterface* getCreator(nvinfer1::AsciiChar const* const name, nvinfer1::AsciiChar const* const version,
                                                  nvinfer1::AsciiChar const* const) noexcept override {
        for (auto* const creator : creators_) {
            auto* const v3 = static_cast<nvinfer1::IPluginCreatorV3One*>(creator);
            if (std::string(v3->getPluginName()) == name && std::string(v3->getPluginVersion()) == version) return creator;
        }
        return nullptr;
    }

    void setErrorRecorder(nvinfer1::IErrorRecorder* const) noexcept override {}
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool const) override {}
    PluginLibraryHandle loadLibrary(nvinfer1::AsciiChar const* path) noexcept override {
        void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) return nullptr;
        bool all = true;
        for (auto* const creator : creatorsOf(library)) all &= registerCreator(*creator, "");
        if (all) return library;
        dlclose(library);
        return nullptr;
    }
    void deregisterLibrary(PluginLibraryHandle library) noexcept override {
        for (auto* const creator : creatorsOf(library)) deregisterCreator(*creator);
        dlclose(library);
    }
    nvinfer1::IPluginResource* acquirePluginResource(nvinfer1::AsciiChar const*, nvinfer1::IPluginResource*) noexcept override {
        return nullptr;
    }
    int32_t releasePluginResource(nvinfer1::AsciiChar const*) noexcept override { return 0; }
    nvinfer1::IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* const count) noexcept {
        return getAllCreators(count);
    }
#if NV_TENSORRT_MAJOR < 11
    bool registerCreator(nvinfer1::IPluginCreator&, nvinfer1::AsciiChar const* const) noexcept override { return false; }
    nvinfer1::IPluginCreator* const* getPluginCreatorList(int32_t* const) const noexcept override { return nullptr; }
    nvinfer1::IPluginCreator* getPluginCreator(nvinfer1::AsciiChar const* const, nvinfer1::AsciiChar const* const,
                                               nvinfer1::AsciiChar const* const) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(nvinfer1::IPluginCreator const&) noexcept override { return false; }
#endif

private:
    static std::vector<nvinfer1::IPluginCreatorInterface*> creatorsOf(void* library) {
        using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
        int32_t count = 0;
        auto* const creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
        return {creators, creators + count};
    }

    std::vector<nvinfer1::IPluginCreatorInterface*> creators_;
};

class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity, nvinfer1::AsciiChar const* message) noexcept override { std::printf("    logged: %s\n", message); }
};

}  // namespace

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    static Registry registry;
    return &registry;
}

extern "C" nvinfer1::ILogger* getLogger() noexcept {
    static Logger logger;
    return &logger;
}

// Stands in for libnvinfer in tests: the two symbols a plugin library needs, and the registry behind them, which
// refuses a name that it has, as TensorRT's does.

#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

#if NV_TENSORRT_MAJOR >= 10
using Creator = IPluginCreatorInterface;
constexpr char const* kGetCreators = "getCreators";
IPluginCreatorV3One const& named(Creator const& creator) { return static_cast<IPluginCreatorV3One const&>(creator); }
#else
using Creator = IPluginCreator;
constexpr char const* kGetCreators = "getPluginCreators";
IPluginCreator const& named(Creator const& creator) { return creator; }
#endif

// Functions without `override` are those that some releases do not have.
class Registry final : public IPluginRegistry {
public:
    bool registerCreator(Creator& creator, AsciiChar const* const) noexcept override {
        if (find(named(creator).getPluginName(), named(creator).getPluginVersion())) return false;
        creators_.push_back(&creator);
        return true;
    }
    bool deregisterCreator(Creator const& creator) noexcept override {
        auto const found = std::find(creators_.begin(), creators_.end(), &creator);
        if (found == creators_.end()) return false;
        creators_.erase(found);
        return true;
    }
    Creator* const* getAllCreators(int32_t* const count) const noexcept {
        *count = static_cast<int32_t>(creators_.size());
        return creators_.data();
    }
    Creator* const* getAllCreatorsRecursive(int32_t* const count) noexcept { return getAllCreators(count); }
    Creator* getCreator(AsciiChar const* const name, AsciiChar const* const version, AsciiChar const* const) noexcept {
        return find(name, version);
    }

    void* loadLibrary(AsciiChar const* path) noexcept {
        void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) return nullptr;
        bool all = true;
        for (auto* const creator : creatorsOf(library)) all &= registerCreator(*creator, "");
        if (all) return library;
        dlclose(library);
        return nullptr;
    }
    void deregisterLibrary(void* library) noexcept {
        for (auto* const creator : creatorsOf(library)) deregisterCreator(*creator);
        dlclose(library);
    }

    void setErrorRecorder(IErrorRecorder* const) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const { return false; }
    void setParentSearchEnabled(bool const) {}
#if NV_TENSORRT_MAJOR < 10
    IPluginCreator* const* getPluginCreatorList(int32_t* const count) const noexcept override { return getAllCreators(count); }
    IPluginCreator* getPluginCreator(AsciiChar const* const name, AsciiChar const* const version,
                                     AsciiChar const* const) noexcept override {
        return find(name, version);
    }
#else
    IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(AsciiChar const*) noexcept override { return 0; }
#endif
#if NV_TENSORRT_MAJOR == 10  // still has what was deprecated
    bool registerCreator(IPluginCreator&, AsciiChar const* const) noexcept override { return false; }
    bool deregisterCreator(IPluginCreator const&) noexcept override { return false; }
    IPluginCreator* const* getPluginCreatorList(int32_t* const) const noexcept override { return nullptr; }
    IPluginCreator* getPluginCreator(AsciiChar const* const, AsciiChar const* const, AsciiChar const* const) noexcept override {
        return nullptr;
    }
#endif

private:
    Creator* find(std::string const& name, std::string const& version) const {
        for (auto* const creator : creators_) {
            if (named(*creator).getPluginName() == name && named(*creator).getPluginVersion() == version) return creator;
        }
        return nullptr;
    }
    static std::vector<Creator*> creatorsOf(void* library) {
        using GetCreators = Creator* const* (*)(int32_t&);
        int32_t count = 0;
        auto* const creators = reinterpret_cast<GetCreators>(dlsym(library, kGetCreators))(count);
        return {creators, creators + count};
    }

    std::vector<Creator*> creators_;
};

class Logger final : public ILogger {
public:
    void log(Severity, AsciiChar const* message) noexcept override { std::printf("    logged: %s\n", message); }
};

}  // namespace

extern "C" IPluginRegistry* getPluginRegistry() noexcept {
    static Registry registry;
    return &registry;
}

extern "C" ILogger* getLogger() noexcept {
    static Logger logger;
    return &logger;
}

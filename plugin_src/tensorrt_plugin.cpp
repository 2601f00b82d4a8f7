// Registers the plugins' creators with TensorRT.
#include "tensorrt_plugin.h"

namespace codetr {
namespace {

// Registers a creator when the library is loaded, and takes it back when it is unloaded.
class Registration {
public:
    explicit Registration(PluginKind const& kind) noexcept : creator_(kind) {
        if (auto* const registry = getPluginRegistry()) registered_ = registry->registerCreator(creator_, kPluginNamespace);
    }
    ~Registration() noexcept { takeBack(); }
    Registration(Registration const&) = delete;
    Registration& operator=(Registration const&) = delete;

    // Gives the creator to a registry that will register it itself.
    CreatorInterface* handOver() noexcept {
        takeBack();
        return &creator_;
    }

private:
    void takeBack() noexcept {
        if (!registered_) return;
        if (auto* const registry = getPluginRegistry()) registry->deregisterCreator(creator_);
        registered_ = false;
    }

    Creator creator_;
    bool registered_ = false;
};

Registration registrations[] = {Registration(kMsDeformAttnPlugin), Registration(kWindowAttnPlugin)};
constexpr int32_t kPlugins = sizeof(registrations) / sizeof(registrations[0]);

}  // namespace
}  // namespace codetr

// IPluginRegistry::loadLibrary opens the library, which has then registered its creators, asks for them, and fails if one
// of them is registered already.
extern "C" __attribute__((visibility("default"))) codetr::CreatorInterface* const* CODETR_GET_CREATORS(int32_t& count) {
    static codetr::CreatorInterface* creators[codetr::kPlugins];
    for (int32_t i = 0; i < codetr::kPlugins; ++i) creators[i] = codetr::registrations[i].handOver();
    count = codetr::kPlugins;
    return creators;
}

// loadLibrary looks for this too, from 8.6 on; its argument is an ILoggerFinder*. Messages go to TensorRT's global logger.
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(void*) {}

// Registers the plugin's creator with TensorRT.
#include "tensorrt_plugin.h"

namespace codetr {
namespace {

// Registers the creator when the library is loaded, and takes it back when it is unloaded.
class Registration {
public:
    Registration() noexcept {
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

    MsDeformAttnCreator creator_;
    bool registered_ = false;
};

Registration registration;

}  // namespace
}  // namespace codetr

// IPluginRegistry::loadLibrary opens the library, which has then registered its creator, asks for its creators, and
// fails if one of them is registered already.
extern "C" __attribute__((visibility("default"))) codetr::CreatorInterface* const* CODETR_GET_CREATORS(int32_t& count) {
    static codetr::CreatorInterface* creators[1];
    creators[0] = codetr::registration.handOver();
    count = 1;
    return creators;
}

// loadLibrary looks for this too, from 8.6 on; its argument is an ILoggerFinder*. Messages go to TensorRT's global logger.
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(void*) {}

#include <dlfcn.h>

#include "engine.hpp"

namespace codetr::run {

void* loadLibrary(std::filesystem::path const& path) {
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) {
        char const* const reason = dlerror();
        throw Error("cannot load " + path.string() + ": " + (reason != nullptr ? reason : "no reason given"));
    }
    return library;
}

}  // namespace codetr::run

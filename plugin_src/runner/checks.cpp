#include "checks.hpp"

#include <dlfcn.h>
#include <openssl/evp.h>
#include <sys/utsname.h>

#include <array>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <utility>

namespace codetr::run {

namespace {

std::string sha256(std::filesystem::path const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error("cannot read " + path.string());
    }
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> const digest(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    bool fine = EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr) == 1;
    std::vector<char> block(1 << 20);
    while (fine && (file.read(block.data(), static_cast<std::streamsize>(block.size())) || file.gcount() > 0)) {
        fine = EVP_DigestUpdate(digest.get(), block.data(), static_cast<std::size_t>(file.gcount())) == 1;
    }
    std::array<unsigned char, EVP_MAX_MD_SIZE> bytes{};
    unsigned int size = 0;
    if (!fine || file.bad() || EVP_DigestFinal_ex(digest.get(), bytes.data(), &size) != 1) {
        throw Error("cannot compute the SHA-256 of " + path.string());
    }
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
        text += "0123456789abcdef"[bytes[i] >> 4];
        text += "0123456789abcdef"[bytes[i] & 15];
    }
    return text;
}

// The first `numbers` numbers of a version such as 2.13.0+cpu.
std::string release(std::string const& version, int numbers) {
    std::size_t end = 0;
    for (int i = 0; i < numbers && end != std::string::npos; ++i) {
        end = version.find_first_of(".+", i == 0 ? 0 : end + 1);
        if (end != std::string::npos && version[end] == '+') {
            break;
        }
    }
    return version.substr(0, end);
}

void compare(std::string const& what, std::string const& built, std::string const& here) {
    if (!built.empty() && !here.empty() && built != here) {
        throw Error("the engine was built " + what + " " + built + ", this machine has " + here + "; build it again here");
    }
}

// What all cores of a machine have, which may be of several kinds; empty where unknown.
std::set<std::string> instructionSets(std::filesystem::path const& cpuinfo) {
    std::ifstream file(cpuinfo);
    std::set<std::string> common;
    bool isFirst = true;
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) {
            continue;
        }
        std::istringstream words(line.substr(line.find(':') + 1));
        std::set<std::string> own;
        for (std::string word; words >> word;) {
            if (isFirst || common.count(word) > 0) {
                own.insert(word);
            }
        }
        common = std::move(own);
        isFirst = false;
    }
    return common;
}

// Refuses a CPU that lacks instructions which the CPU had that a package was compiled on, and so for.
void checkCpu(Manifest const& manifest, std::filesystem::path const& cpuinfo) {
    if (manifest.cpuFeatures.empty()) {
        return;
    }
    utsname system{};
    uname(&system);
    compare("for processors of", manifest.cpuMachine, system.machine);
    std::set<std::string> const here = instructionSets(cpuinfo);
    std::string missing;
    for (std::string const& feature : manifest.cpuFeatures) {
        if (!here.empty() && here.count(feature) == 0) {
            missing += (missing.empty() ? "" : ", ") + feature;
        }
    }
    if (!missing.empty()) {
        throw Error("the engine was built for a CPU with " + missing + ", which this machine's lacks; build it again here");
    }
}

}  // namespace

void checkFiles(std::filesystem::path const& folder, Manifest const& manifest, int version) {
    std::filesystem::path const wanted = std::to_string(version);
    bool isThere = false;
    for (auto const& [name, expected] : manifest.files) {
        std::filesystem::path const file(name);
        if (file.parent_path() != wanted) {
            continue;
        }
        isThere = true;
        std::filesystem::path const path = folder / file;
        if (!std::filesystem::is_regular_file(path)) {
            throw Error(folder.string() + " is incomplete: " + name + " is missing; build it again");
        }
        std::string const actual = sha256(path);
        if (actual != expected) {
            throw Error(path.string() + " is not the file that was built: its SHA-256 is " + actual + ", manifest.json says " + expected +
                        "; build the repository again");
        }
    }
    if (!isThere) {
        throw Error("the manifest of " + folder.string() + " has no engine in folder " + wanted.string() +
                    "; give another --engine-version");
    }
}

std::string computeCapability() {
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == nullptr) {
        return "";
    }
    auto const init = reinterpret_cast<int (*)(unsigned int)>(dlsym(driver, "cuInit"));
    auto const device = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
    auto const attribute = reinterpret_cast<int (*)(int*, int, int)>(dlsym(driver, "cuDeviceGetAttribute"));
    int const kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
    int first = 0, major = 0, minor = 0;
    bool const known = init != nullptr && device != nullptr && attribute != nullptr && init(0) == 0 && device(&first, 0) == 0 &&
                       attribute(&major, kMajor, first) == 0 && attribute(&minor, kMinor, first) == 0;
    return known ? std::to_string(major) + "." + std::to_string(minor) : "";
}

void checkMachine(Manifest const& manifest, Machine const& machine) {
    // Also with version compatibility: such a plan lacks the runtime that another TensorRT needs.
    if (manifest.engine == "tensorrt") {
        compare("with TensorRT", release(manifest.tensorrt, 3), release(machine.release, 3));
    } else if (manifest.engine == "torch") {
        compare("with PyTorch", release(manifest.torch, 2), release(machine.release, 2));
        checkCpu(manifest, machine.cpuinfo);
    }
    if (!manifest.hardwareCompatible && (manifest.engine == "tensorrt" || manifest.device == "cuda")) {
        compare("for compute capability", manifest.computeCapability, machine.capability);
    }
}

std::string tensorrtRelease(int number) {
    int const major = number / (number < 10000 ? 1000 : 10000), rest = number % (number < 10000 ? 1000 : 10000);
    return std::to_string(major) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

}  // namespace codetr::run

// Whether an engine's files are those that were built, and whether it was built for this machine: as `serving.manifest`.
#pragma once

#include <filesystem>
#include <string>

#include "rules.hpp"

namespace codetr::run {

// Compares what of an engine's version lies in the detector's folder with the manifest's SHA-256. Throws Error, which names
// the file.
void checkFiles(std::filesystem::path const& folder, Manifest const& manifest, int version);

// Returns the compute capability of the first GPU that CUDA sees, such as 9.0; empty where there is none.
std::string computeCapability();

// What a program runs engines with. What is not known, empty, is not judged.
struct Machine {
    std::string release;  // of TensorRT or PyTorch, whichever runs the engine
    std::string capability = computeCapability();
    std::filesystem::path cpuinfo = "/proc/cpuinfo";
};

// Compares what an engine was built with and for with a machine. Throws Error, which names both.
void checkMachine(Manifest const& manifest, Machine const& machine);

// Returns the release of a libnvinfer from what its `getInferLibVersion` returns: 8503 is 8.5.3, 101601 is 10.16.1.
std::string tensorrtRelease(int number);

}  // namespace codetr::run

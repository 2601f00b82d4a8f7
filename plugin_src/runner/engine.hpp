// What runs a detector: a TensorRT plan, or an AOTInductor package. Which of them a program has, CMake decides.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "rules.hpp"

namespace codetr::run {

// Candidates of a batch: `count` for each image.
struct Candidates {
    std::vector<float> boxes;          // [B, count, 4] x1 y1 x2 y2 in 0..1 of the valid image
    std::vector<float> scores;         // [B, count]
    std::vector<std::int32_t> labels;  // [B, count]
    std::size_t count = 0;
};

class Engine {
public:
    virtual ~Engine() = default;

    // Runs `batch` images uint8 [batch, height, width, 3] with valid sizes int32 [batch, 2]. Throws Error.
    virtual Candidates run(std::uint8_t const* images, std::int32_t const* sizes, int batch) = 0;

    // Repeats the last run, its inputs where they are, and returns the milliseconds of each. Throws Error.
    virtual std::vector<double> repeat(int iterations) = 0;
};

struct EngineFiles {
    std::filesystem::path folder;    // of the version: model.plan or model.pt2, and the operator's library
    std::filesystem::path tensorrt;  // libnvinfer to load; empty: the one of the headers' release that the loader finds
};

#ifdef CODETR_RUN_PLANS
std::unique_ptr<Engine> loadPlan(EngineFiles const& files, Manifest const& manifest);
#endif
#ifdef CODETR_RUN_PACKAGES
std::unique_ptr<Engine> loadPackage(EngineFiles const& files, Manifest const& manifest);
#endif

// Loads a library for the whole process. Throws Error, which names it.
void* loadLibrary(std::filesystem::path const& path);

}  // namespace codetr::run

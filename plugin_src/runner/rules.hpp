// What `manifest.json` of a repository says of an engine: how images go in, and how candidates become detections.
#pragma once

#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace codetr::run {

// An engine, a manifest or a picture that cannot be used; the message is one line.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

struct Size {
    int height = 0, width = 0;
    friend bool operator==(Size const& a, Size const& b) { return a.height == b.height && a.width == b.width; }
};

// As `serving.rules.Pixels`.
struct Pixels {
    bool stretch = false;    // fill the input; else keep the ratio, into the top left corner
    bool antialias = false;  // Pillow's bilinear filter, which widens as an image shrinks; else OpenCV's
    int shortestEdge = 0, longestEdge = 0;
};

enum class Suppressing { kSoft, kHard, kNone };

// As `serving.rules.Suppression`.
struct Suppression {
    Suppressing kind = Suppressing::kSoft;
    float iouThreshold = 0.8f, minScore = 0.001f, scoreThreshold = 0.0f;
    bool classAgnostic = false, clip = true;
};

struct Manifest {
    std::string engine, precision;  // tensorrt, torch or onnx; float32, float16, ...
    std::string device;             // cuda or cpu
    Size size;                      // of the engine's input
    int maxBatchSize = 1;
    bool dynamicBatch = false;  // every batch from 1 on; else maxBatchSize alone
    int maxDetections = 300;
    bool readsSizes = true;  // of the valid images, beside the images
    std::vector<std::string> classNames;
    Pixels pixels;
    Suppression suppression;
    // What it is made of and was built with and for; empty where the manifest does not tell.
    std::map<std::string, std::string> files;  // SHA-256 as hex digits by path in the detector's folder
    std::string tensorrt, torch;               // releases
    std::string computeCapability;             // of the GPU, such as 9.0
    bool hardwareCompatible = false;           // runs on other GPUs too
    std::string cpuMachine;                    // of a package for a CPU: its architecture and its instruction sets
    std::vector<std::string> cpuFeatures;
};

// Reads the rules of JSON texts like those in a manifest. Throw Error, which names the key.
Pixels parsePixels(std::string const& json);
Suppression parseSuppression(std::string const& json);

// Reads `manifest.json` in a detector's folder. Throws Error.
Manifest readManifest(std::filesystem::path const& folder);

}  // namespace codetr::run

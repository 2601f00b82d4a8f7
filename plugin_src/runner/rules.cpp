#include "rules.hpp"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace codetr::run {

namespace {

using nlohmann::json;

constexpr int kNewestSchema = 4;

template <typename T>
T valueOf(json const& object, char const* key) {
    try {
        return object.at(key).get<T>();
    } catch (json::exception const&) {
        throw Error(std::string("the manifest has no usable ") + key);
    }
}

Pixels pixelsOf(json const& rule) {
    Pixels pixels;
    std::string const resize = valueOf<std::string>(rule, "resize");
    if (resize != "fit" && resize != "stretch") {
        throw Error("resize: expected fit or stretch, got " + resize);
    }
    pixels.stretch = resize == "stretch";
    pixels.antialias = valueOf<bool>(rule, "antialias");
    pixels.shortestEdge = valueOf<int>(rule, "shortest_edge");
    pixels.longestEdge = valueOf<int>(rule, "longest_edge");
    return pixels;
}

Suppression suppressionOf(json const& rule) {
    Suppression suppression;
    std::string const kind = valueOf<std::string>(rule, "kind");
    if (kind == "soft") {
        suppression.kind = Suppressing::kSoft;
    } else if (kind == "hard") {
        suppression.kind = Suppressing::kHard;
    } else if (kind == "none") {
        suppression.kind = Suppressing::kNone;
    } else {
        throw Error("kind of suppression: expected soft, hard or none, got " + kind);
    }
    suppression.iouThreshold = valueOf<float>(rule, "iou_threshold");
    suppression.minScore = valueOf<float>(rule, "min_score");
    suppression.scoreThreshold = valueOf<float>(rule, "score_threshold");
    suppression.classAgnostic = valueOf<bool>(rule, "class_agnostic");
    suppression.clip = valueOf<bool>(rule, "clip");
    return suppression;
}

// A value that may be missing or null.
template <typename T>
T valueOr(json const& object, char const* key, T const& otherwise) {
    bool const isThere = object.is_object() && object.contains(key) && !object.at(key).is_null();
    return isThere ? valueOf<T>(object, key) : otherwise;
}

json parsed(std::string const& text, std::string const& what) {
    json value = json::parse(text, nullptr, false);
    if (!value.is_object()) {
        throw Error(what + " is no JSON object");
    }
    return value;
}

}  // namespace

Pixels parsePixels(std::string const& text) { return pixelsOf(parsed(text, "the rule of pixels")); }

Suppression parseSuppression(std::string const& text) { return suppressionOf(parsed(text, "the rule of suppression")); }

Manifest readManifest(std::filesystem::path const& folder) {
    std::filesystem::path const path = folder / "manifest.json";
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error("no " + path.string() + "; expected the folder NAME_detector of a repository");
    }
    std::ostringstream text;
    text << file.rdbuf();
    json const all = parsed(text.str(), path.string());
    int const schema = valueOf<int>(all, "schema");
    if (schema < 3 || schema > kNewestSchema) {
        throw Error(path.string() + " has schema " + std::to_string(schema) + "; this program reads 3 to " + std::to_string(kNewestSchema));
    }
    json const network = valueOf<json>(all, "network"), rules = valueOf<json>(network, "rules");
    Manifest manifest;
    manifest.engine = valueOf<std::string>(all, "engine");
    manifest.precision = valueOf<std::string>(all, "precision");
    manifest.device = valueOf<std::string>(all, "device");
    manifest.size = {valueOf<int>(all, "height"), valueOf<int>(all, "width")};
    manifest.maxBatchSize = valueOf<int>(all, "max_batch_size");
    manifest.dynamicBatch = valueOf<bool>(all, "dynamic_batch");
    manifest.maxDetections = valueOf<int>(all, "max_detections");
    if (schema >= 4) {
        manifest.readsSizes = valueOf<std::vector<std::string>>(all, "inputs").size() > 1;
    }
    for (auto const& [name, digest] : valueOf<std::map<std::string, std::string>>(all, "files")) {
        std::size_t const slash = name.find('/');
        std::string const ending = "_detector";
        if (slash != std::string::npos && slash >= ending.size() && name.compare(slash - ending.size(), ending.size(), ending) == 0) {
            manifest.files[name.substr(slash + 1)] = digest;
        }
    }
    json const none = json::object(), versions = valueOr(all, "versions", none), cpu = valueOr(all, "cpu", none);
    manifest.tensorrt = valueOr<std::string>(versions, "tensorrt", "");
    manifest.torch = valueOr<std::string>(versions, "torch", "");
    manifest.computeCapability = valueOr<std::string>(all, "compute_capability", "");
    manifest.hardwareCompatible = valueOr(all, "hardware_compatible", false);
    manifest.cpuMachine = valueOr<std::string>(cpu, "machine", "");
    manifest.cpuFeatures = valueOr(cpu, "features", std::vector<std::string>{});
    manifest.classNames = valueOf<std::vector<std::string>>(network, "class_names");
    manifest.pixels = pixelsOf(valueOf<json>(rules, "pixels"));
    manifest.suppression = suppressionOf(valueOf<json>(rules, "suppression"));
    if (manifest.size.height < 1 || manifest.size.width < 1 || manifest.maxBatchSize < 1 || manifest.maxDetections < 1) {
        throw Error(path.string() + " has a size below 1");
    }
    return manifest;
}

}  // namespace codetr::run

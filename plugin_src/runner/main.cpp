// codetr_run: a detector without a server. Reads `manifest.json` of a repository's NAME_detector, runs its plan or package,
// and does before and after it in C++ what the server's Python steps do.

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <iostream>
#include <numeric>

#include "checks.hpp"
#include "codetr/client.hpp"
#include "engine.hpp"
#include "outputs.hpp"
#include "picture.hpp"
#include "pixels.hpp"
#include "report.hpp"
#include "suppress.hpp"

namespace {

using namespace codetr::run;
namespace fs = std::filesystem;

std::unique_ptr<Engine> loadEngine(EngineFiles const& files, Manifest const& manifest) {
#ifdef CODETR_RUN_PLANS
    if (manifest.engine == "tensorrt") {
        return loadPlan(files, manifest);
    }
#endif
#ifdef CODETR_RUN_PACKAGES
    if (manifest.engine == "torch") {
        return loadPackage(files, manifest);
    }
#endif
    throw Error("this program was built without what runs engine " + manifest.engine +
                "; plans need TensorRT's headers, packages libtorch");
}

// The smallest batch that the engine takes, its first image the given one; the others are empty.
struct Batch {
    explicit Batch(Manifest const& manifest, int wanted) : images(wanted) {
        pixels.resize(static_cast<std::size_t>(wanted) * static_cast<std::size_t>(manifest.size.height) *
                      static_cast<std::size_t>(manifest.size.width) * 3);
        for (int i = 0; i < wanted; ++i) {
            sizes.push_back(manifest.size.height);
            sizes.push_back(manifest.size.width);
        }
    }
    int images;
    std::vector<std::uint8_t> pixels;
    std::vector<std::int32_t> sizes;
};

std::vector<codetr::Detection> detect(Engine& engine, Manifest const& manifest, std::string const& encoded, float threshold) {
    codetr::Picture const picture = codetr::decode(encoded);
    Size const original{picture.height, picture.width};
    Batch batch(manifest, manifest.dynamicBatch ? 1 : manifest.maxBatchSize);
    Size const valid = resizeAndPad(picture.pixels.data(), original, batch.pixels.data(), manifest.size, manifest.pixels);
    batch.sizes[0] = valid.height;
    batch.sizes[1] = valid.width;
    Candidates const candidates = engine.run(batch.pixels.data(), batch.sizes.data(), batch.images);
    std::vector<codetr::Detection> detections;
    for (Found const& found : detectionsOf(candidates.boxes.data(), candidates.scores.data(), candidates.labels.data(), candidates.count,
                                           original, manifest.suppression, static_cast<std::size_t>(manifest.maxDetections), threshold)) {
        auto const label = static_cast<std::size_t>(found.label);
        bool const isNamed = found.label >= 0 && label < manifest.classNames.size();
        detections.push_back(
            {found.box, found.score, found.label, isNamed ? manifest.classNames[label] : "class " + std::to_string(found.label)});
    }
    return detections;
}

void measure(Engine& engine, Manifest const& manifest, int images, int iterations) {
    if (images > manifest.maxBatchSize || (!manifest.dynamicBatch && images != manifest.maxBatchSize)) {
        throw Error("the engine takes no batch of " + std::to_string(images));
    }
    Batch const batch(manifest, images);
    engine.run(batch.pixels.data(), batch.sizes.data(), batch.images);
    engine.repeat(std::max(iterations / 10, 3));  // warm-up
    std::vector<double> times = engine.repeat(iterations);
    std::sort(times.begin(), times.end());
    auto const at = [&](double part) { return times[static_cast<std::size_t>(part * static_cast<double>(times.size() - 1) + 0.5)]; };
    double const mean = std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
    std::printf("%s %s, %dx%d, batch %d, %d runs: median %.3f ms, p95 %.3f, p99 %.3f, mean %.3f; %.1f images/s\n", manifest.engine.c_str(),
                manifest.precision.c_str(), manifest.size.width, manifest.size.height, images, iterations, at(0.5), at(0.95), at(0.99),
                mean, images * 1000.0 / mean);
}

struct Arguments {
    std::string folder, output, tensorrt;
    std::vector<std::string> images;
    double threshold = 0.3;
    int iterations = 0, batch = 1, version = 1;
};

int run(Arguments const& arguments) {
    fs::path const folder(arguments.folder);
    Manifest const manifest = readManifest(folder);
    std::vector<fs::path> const paths = arguments.images.empty() ? std::vector<fs::path>{} : codetr::findImages(arguments.images);
    checkFiles(folder, manifest, arguments.version);
    std::unique_ptr<Engine> const engine = loadEngine({folder / std::to_string(arguments.version), arguments.tensorrt}, manifest);
    if (arguments.iterations > 0) {
        measure(*engine, manifest, arguments.batch, arguments.iterations);
    }
    if (paths.empty()) {
        return 0;
    }
    auto const threshold = static_cast<float>(arguments.threshold);
    return codetr::detectFiles(paths, arguments.output, threshold, [&](std::string const& image) {
        try {
            return detect(*engine, manifest, image, threshold);
        } catch (Error const& error) {
            throw codetr::Error(codetr::Error::Kind::kFault, error.what());
        }
    });
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("Detect objects in pictures with an engine of a repository, without a server.", "codetr_run");
    Arguments arguments;
    app.add_option("detector", arguments.folder, "Folder NAME_detector of a repository")->required();
    auto* const images = app.add_option("images", arguments.images, "Files or folders");
    auto* const output = app.add_option("--output", arguments.output, "Folder for the annotated pictures and detections.json");
    images->needs(output);
    app.add_option("--score-threshold", arguments.threshold, "Lowest score shown")->check(codetr::isShare, "0..1")->capture_default_str();
    app.add_option("--benchmark-iterations", arguments.iterations, "Measure so many inferences of an empty batch first")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--batch", arguments.batch, "Images in a measured inference")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--engine-version", arguments.version, "Folder of the engine in the detector's")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--tensorrt", arguments.tensorrt, "libnvinfer to load, if the loader does not find it")->check(CLI::ExistingFile);
    CLI11_PARSE(app, argc, argv);
    if (arguments.images.empty() && arguments.iterations == 0) {
        std::cerr << "error: give images, or --benchmark-iterations\n";
        return 1;
    }
    try {
        return run(arguments);
    } catch (std::exception const& error) {
        std::cerr << "error: " << codetr::shown(error.what()) << "\n";
    }
    return 1;
}

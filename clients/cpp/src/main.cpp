// codetr_detect: pictures in, annotated pictures, detections.json and a table out, as `codetr detect` does.

#include <CLI/CLI.hpp>

#include <iostream>
#include <string>
#include <vector>

#include "codetr/client.hpp"
#include "outputs.hpp"
#include "report.hpp"

int main(int argc, char** argv) {
    CLI::App app("Detect objects in pictures with a running server, over HTTP.", "codetr_detect");
    std::vector<std::string> images;
    std::string output;
    codetr::Options options;
    double threshold = 0.3;
    app.add_option("images", images, "Files or folders")->required();
    app.add_option("--output", output, "Folder for the annotated pictures and detections.json")->required();
    app.add_option("--url", options.url, "host:port, or a URL of http or https")->capture_default_str();
    app.add_option("--model", options.model, "Name of the ensemble on the server")->capture_default_str();
    app.add_option("--score-threshold", threshold, "Lowest score shown")->check(codetr::isShare, "0..1")->capture_default_str();
    app.add_option("--timeout", options.timeout, "Seconds for one answer")->capture_default_str();
    app.add_option("--tls-ca", options.caFile, "Certificates to trust for https; the system's if not given")->check(CLI::ExistingFile);
    CLI11_PARSE(app, argc, argv);
    try {
        std::vector<std::filesystem::path> const paths = codetr::findImages(images);
        codetr::Client client(std::move(options));
        client.check();
        auto const lowest = static_cast<float>(threshold);
        return codetr::detectFiles(paths, output, lowest, [&](std::string const& image) { return client.detect(image, lowest); });
    } catch (codetr::Error const& error) {
        std::cerr << "error: " << codetr::shown(error.what()) << "\n";
    } catch (std::exception const& error) {
        std::cerr << "error: " << codetr::shown(error.what()) << "\n";
    }
    return 1;
}

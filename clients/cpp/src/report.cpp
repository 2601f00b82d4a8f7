#include "report.hpp"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "outputs.hpp"
#include "picture.hpp"

namespace codetr {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::size_t kMaxImagesInFull = 5;  // more are summarised, one line an image

struct Result {
    fs::path path;
    std::vector<Detection> detections;
    std::string error;  // empty: detected
};

volatile std::sig_atomic_t interrupted = 0;

// While it is there, Ctrl-C lets the image under way come to its end, and pressed again ends the program.
class Interruption {
public:
    Interruption() : former_(std::signal(SIGINT, &interrupt)) {
        if (former_ == SIG_IGN) {  // as a shell has it in the background
            std::signal(SIGINT, SIG_IGN);
        }
    }
    ~Interruption() { std::signal(SIGINT, former_); }
    Interruption(Interruption const&) = delete;
    Interruption& operator=(Interruption const&) = delete;

private:
    static void interrupt(int number) {
        interrupted = 1;
        std::signal(number, SIG_DFL);
    }

    void (*former_)(int);
};

ordered_json toJson(Detection const& detection) {
    ordered_json box = ordered_json::array();
    for (float const side : detection.box) {
        box.push_back(static_cast<double>(side));
    }
    return {{"box", box}, {"score", static_cast<double>(detection.score)}, {"label", detection.label}, {"name", detection.name}};
}

ordered_json detectOne(Detect const& detect, fs::path const& path, fs::path const& picture, Result& result) {
    try {
        std::string const content = readFile(path.string());
        result.detections = detect(content);
        Picture canvas = decode(content);
        draw(canvas, result.detections);
        writeWhole(picture, encode(canvas));
        ordered_json found = ordered_json::array();
        for (Detection const& detection : result.detections) {
            found.push_back(toJson(detection));
        }
        return {{"file", path.string()},
                {"width", canvas.width},
                {"height", canvas.height},
                {"picture", picture.filename().string()},
                {"detections", found}};
    } catch (Error const& error) {
        if (error.isFatal()) {
            throw;
        }
        result.error = error.what();
        return {{"file", path.string()}, {"error", result.error}};
    }
}

void printRow(std::vector<std::string> const& cells, std::vector<std::size_t> const& widths) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
        std::cout << cells[i] << (i + 1 == cells.size() ? "\n" : std::string(widths[i] - cells[i].size() + 2, ' '));
    }
}

void printTable(std::vector<Result> const& results) {
    bool const isFull = results.size() <= kMaxImagesInFull;
    std::vector<std::vector<std::string>> rows = {isFull ? std::vector<std::string>{"image", "class", "score", "box (x1 y1 x2 y2)"}
                                                         : std::vector<std::string>{"image", "detections", "classes"}};
    std::size_t const columns = rows.front().size();
    auto const add = [&](std::vector<std::string> row) {
        row.resize(columns);
        rows.push_back(std::move(row));
    };
    for (Result const& result : results) {
        std::string const name = shown(result.path.filename().string());
        if (!result.error.empty()) {
            add({name, "failed"});
        } else if (!isFull) {
            std::map<std::string, int> counts;
            for (Detection const& detection : result.detections) {
                ++counts[detection.name];
            }
            std::vector<std::pair<std::string, int>> common(counts.begin(), counts.end());
            std::stable_sort(common.begin(), common.end(), [](auto const& a, auto const& b) { return a.second > b.second; });
            std::string classes;
            for (auto const& [label, count] : common) {
                classes += (classes.empty() ? "" : ", ") + std::to_string(count) + " " + shown(label);
            }
            add({name, std::to_string(result.detections.size()), classes});
        } else if (result.detections.empty()) {
            add({name, "nothing found"});
        } else {
            std::vector<Detection> sorted = result.detections;
            std::stable_sort(sorted.begin(), sorted.end(), [](auto const& a, auto const& b) { return a.score > b.score; });
            for (Detection const& detection : sorted) {
                char score[16], box[96];
                auto const& [x1, y1, x2, y2] = detection.box;
                std::snprintf(score, sizeof score, "%.3f", static_cast<double>(detection.score));
                std::snprintf(box, sizeof box, "%.1f %.1f %.1f %.1f", static_cast<double>(x1), static_cast<double>(y1),
                              static_cast<double>(x2), static_cast<double>(y2));
                add({name, shown(detection.name), score, box});
            }
        }
    }
    std::vector<std::size_t> widths(columns, 0);
    for (auto const& row : rows) {
        for (std::size_t i = 0; i < columns; ++i) {
            widths[i] = std::max(widths[i], row[i].size());
        }
    }
    for (auto const& row : rows) {
        printRow(row, widths);
    }
}

}  // namespace

std::string shown(std::string text) {
    std::replace_if(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, '?');
    return text;
}

std::string isShare(std::string const& text) {
    char* end = nullptr;
    double const value = std::strtod(text.c_str(), &end);
    bool const isOne = !text.empty() && *end == '\0' && value >= 0.0 && value <= 1.0;  // NaN is not
    return isOne ? "" : "expected a number of 0 to 1, got " + text;
}

int detectFiles(std::vector<fs::path> const& paths, fs::path const& output, float threshold, Detect const& detect) {
    makeFolder(output);
    fs::path const resultsFile = output / "detections.json";
    checkResults(resultsFile, paths);
    std::vector<fs::path> const pictures = planPictures(output, paths);
    ordered_json document = {{"score_threshold", static_cast<double>(threshold)}, {"images", ordered_json::array()}};
    auto const write = [&] {
        std::string const text = document.dump(1, ' ', false, ordered_json::error_handler_t::replace);
        writeWhole(resultsFile, text + "\n");
    };
    std::vector<Result> results;
    try {
        Interruption const interruption;
        for (std::size_t i = 0; i < paths.size() && interrupted == 0; ++i) {
            Result result{paths[i], {}, {}};
            document["images"].push_back(detectOne(detect, paths[i], pictures[i], result));
            results.push_back(std::move(result));
        }
    } catch (Error const&) {
        write();  // what was found before the server went away
        throw;
    }
    write();
    if (results.size() < paths.size()) {
        std::cerr << "interrupted: " << results.size() << " of " << paths.size() << " images are in " << shown(resultsFile.string())
                  << "\n";
        return 128 + SIGINT;
    }
    printTable(results);
    std::cout << "pictures and detections.json are in " << shown(output.string()) << "\n";
    std::string failures;
    std::size_t failed = 0;
    for (Result const& result : results) {
        if (!result.error.empty()) {
            failures += (failed++ == 0 ? "" : "; ") + result.path.filename().string() + ": " + result.error;
        }
    }
    if (failed > 0) {
        std::cerr << "error: " << failed << " of " << results.size() << " images failed: " << shown(failures) << "\n";
        return 1;
    }
    return 0;
}

}  // namespace codetr

// Puts pre- and post-processing to the test: what to do in lines of text, arrays as raw bytes, both on stdin and stdout.
//
//   pixels H W HEIGHT WIDTH RULE\n   and uint8 [H, W, 3]                 -> int32 [2], uint8 [HEIGHT, WIDTH, 3]
//   detections N H W MOST LOWEST RULE\n   and the candidates' arrays     -> int32 count, then float32 [4], float32, int32 each
//   files FOLDER VERSION\n   and   machine FOLDER RELEASE CAPABILITY CPUINFO\n   of a detector's folder -> nothing, or an error
//   release NUMBER\n   of what a libnvinfer says of itself          -> the text
//
// RULE is JSON without blanks, LOWEST a score or none.
#include <cstdio>
#include <iostream>
#include <sstream>

#include "../checks.hpp"
#include "../pixels.hpp"
#include "../suppress.hpp"

namespace {

using namespace codetr::run;

template <typename T>
std::vector<T> readArray(std::size_t count) {
    std::vector<T> values(count);
    std::cin.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(T)));
    return values;
}

template <typename T>
void write(T const* values, std::size_t count) {
    std::cout.write(reinterpret_cast<char const*>(values), static_cast<std::streamsize>(count * sizeof(T)));
}

void pixels(std::istream& words) {
    Size from, engine;
    std::string rule;
    words >> from.height >> from.width >> engine.height >> engine.width >> rule;
    auto const image = readArray<std::uint8_t>(static_cast<std::size_t>(from.height) * static_cast<std::size_t>(from.width) * 3);
    std::vector<std::uint8_t> input(static_cast<std::size_t>(engine.height) * static_cast<std::size_t>(engine.width) * 3);
    Size const valid = resizeAndPad(image.data(), from, input.data(), engine, parsePixels(rule));
    std::int32_t const size[2] = {valid.height, valid.width};
    write(size, 2);
    write(input.data(), input.size());
}

void detections(std::istream& words) {
    std::size_t count = 0, most = 0;
    Size original;
    std::string lowest, rule;
    words >> count >> original.height >> original.width >> most >> lowest >> rule;
    auto const boxes = readArray<float>(4 * count), scores = readArray<float>(count);
    auto const labels = readArray<std::int32_t>(count);
    std::optional<float> const least = lowest == "none" ? std::nullopt : std::optional(std::stof(lowest));
    std::vector<Found> const found =
        detectionsOf(boxes.data(), scores.data(), labels.data(), count, original, parseSuppression(rule), most, least);
    auto const number = static_cast<std::int32_t>(found.size());
    write(&number, 1);
    write(found.data(), found.size());
}

void files(std::istream& words) {
    std::string folder;
    int version = 0;
    words >> folder >> version;
    checkFiles(folder, readManifest(folder), version);
}

void machine(std::istream& words) {
    std::string folder, cpuinfo;
    Machine here;
    words >> folder >> here.release >> here.capability >> cpuinfo;
    here.cpuinfo = cpuinfo;
    checkMachine(readManifest(folder), here);
}

void answer(std::string const& what, std::istream& words) {
    if (what == "pixels") {
        pixels(words);
    } else if (what == "detections") {
        detections(words);
    } else if (what == "files") {
        files(words);
    } else if (what == "machine") {
        machine(words);
    } else {
        int number = 0;
        words >> number;
        std::cout << tensorrtRelease(number);
    }
}

}  // namespace

int main() {
    static_assert(sizeof(Found) == 24, "as the tests read it");
    std::ios::sync_with_stdio(false);
    std::string line;
    try {
        while (std::getline(std::cin, line)) {
            std::istringstream words(line);
            std::string what;
            words >> what;
            answer(what, words);
            std::cout.flush();
        }
    } catch (Error const& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}

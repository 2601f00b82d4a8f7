#include "outputs.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "picture.hpp"

namespace codetr {

namespace fs = std::filesystem;

namespace {

constexpr std::array<char const*, 9> kSuffixes = {".bmp", ".jfi", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"};
// In which systems keep copies of pictures: of macOS's archives, of Synology's disks, Windows' deleted ones.
constexpr std::array<char const*, 3> kSystemFolders = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"};
constexpr std::size_t kStemBytes = 240;  // of a name's 255, which leaves room for a number and the suffix

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

[[noreturn]] void refuse(std::string const& message) { throw Error(Error::Kind::kInvalid, message); }

bool isOwnPicture(fs::path const& path) {
    std::error_code error;
    if (lower(path.extension().string()) != ".jpg" || fs::is_symlink(path, error) || !fs::is_regular_file(path, error)) {
        return false;
    }
    std::ifstream file(path, std::ios::binary);
    std::string content(4096, '\0');  // the mark stands in front
    file.read(content.data(), static_cast<std::streamsize>(content.size()));
    content.resize(static_cast<std::size_t>(file.gcount()));
    if (content.find(kMark) == std::string::npos) {
        return false;
    }
    content.append(std::istreambuf_iterator<char>(file), {});
    return isOwn(content);
}

bool isOneOf(fs::path const& path, std::vector<fs::path> const& sources) {
    return std::any_of(sources.begin(), sources.end(), [&](fs::path const& source) {
        std::error_code error;
        return fs::equivalent(path, source, error);
    });
}

bool isThere(fs::path const& path) {
    std::error_code error;
    return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

// Returns as much of a name as there is room for, no character cut.
std::string shortened(std::string stem) {
    if (stem.size() > kStemBytes) {
        std::size_t end = kStemBytes;
        while (end > 0 && (static_cast<unsigned char>(stem[end]) & 0xc0) == 0x80) {
            --end;
        }
        stem.resize(end);
    }
    return stem;
}

std::vector<fs::path> imagesIn(fs::path const& folder) {
    std::vector<fs::path> found;
    std::error_code error;
    fs::recursive_directory_iterator iterator(folder, fs::directory_options::skip_permission_denied, error);
    for (fs::recursive_directory_iterator const end; !error && iterator != end; iterator.increment(error)) {
        fs::path const& path = iterator->path();
        bool const isHidden = path.filename().string().front() == '.';
        std::error_code ignored;
        if (iterator->is_directory(ignored)) {
            std::string const name = path.filename().string();
            if (isHidden || std::find(kSystemFolders.begin(), kSystemFolders.end(), name) != kSystemFolders.end()) {
                iterator.disable_recursion_pending();
            }
            continue;
        }
        std::string const suffix = lower(path.extension().string());
        bool const isImage = std::find(kSuffixes.begin(), kSuffixes.end(), suffix) != kSuffixes.end();
        bool const isFile = iterator->is_regular_file(ignored) || !iterator->exists(ignored);  // no pipe; a broken link fails
        if (isImage && isFile && !isHidden && !isOwnPicture(path)) {
            found.push_back(path);
        }
    }
    if (error) {
        refuse("cannot read the folder " + folder.string() + ": " + error.message());
    }
    std::sort(found.begin(), found.end());
    return found;
}

}  // namespace

std::vector<fs::path> findImages(std::vector<std::string> const& arguments) {
    std::vector<fs::path> found;
    std::set<fs::path> seen;
    for (std::string const& argument : arguments) {
        std::error_code error;
        std::vector<fs::path> paths = {argument};
        if (fs::is_directory(argument, error)) {
            paths = imagesIn(argument);
            if (paths.empty()) {
                std::string suffixes;
                for (char const* const suffix : kSuffixes) {
                    suffixes += (suffixes.empty() ? "" : ", ") + std::string(suffix);
                }
                refuse("no images in " + argument + ": expected files ending in " + suffixes +
                       ", other than annotated pictures of earlier runs");
            }
        }
        for (fs::path const& path : paths) {
            if (seen.insert(fs::absolute(path).lexically_normal()).second) {
                found.push_back(path);
            }
        }
    }
    return found;
}

void makeFolder(fs::path const& folder) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (!fs::is_directory(folder)) {
        refuse("output " + folder.string() + ": it cannot be made, or is a file; expected a folder, name another");
    }
}

std::vector<fs::path> planPictures(fs::path const& folder, std::vector<fs::path> const& sources) {
    std::vector<fs::path> planned;
    std::set<std::string> taken;
    for (fs::path const& source : sources) {
        std::string const stem = shortened(source.stem().string());
        fs::path picture = folder / (stem + ".jpg");
        auto const isFree = [&] {
            return taken.count(lower(picture.filename().string())) == 0 &&
                   (!isThere(picture) || (isOwnPicture(picture) && !isOneOf(picture, sources)));
        };
        for (int count = 2; !isFree(); ++count) {
            picture = folder / (stem + "-" + std::to_string(count) + ".jpg");
        }
        taken.insert(lower(picture.filename().string()));
        planned.push_back(picture);
    }
    return planned;
}

void checkResults(fs::path const& results, std::vector<fs::path> const& sources) {
    if (isOneOf(results, sources)) {
        refuse(results.string() + " would be overwritten, but it is read; name another output");
    }
    if (!isThere(results)) {
        return;
    }
    std::ifstream file(results);
    nlohmann::json const document = nlohmann::json::parse(file, nullptr, false);
    if (!document.is_object() || document.size() != 2 || !document.contains("images") || !document.contains("score_threshold")) {
        refuse(results.string() + " would be overwritten, but no earlier run wrote it; move it away, or name another output folder");
    }
}

void writeWhole(fs::path const& path, std::string const& content) {
    // By a number, because the name itself can have all the bytes that a name may have.
    std::size_t const number = std::hash<std::string>{}(path.filename().string());
    fs::path const partial = path.parent_path() / ("." + std::to_string(number) + ".partial");
    std::error_code error;
    fs::remove(partial, error);  // of a run that was killed
    std::ofstream file(partial, std::ios::binary);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    file.close();
    int const reason = errno;
    if (!file) {
        fs::remove(partial, error);
        refuse("cannot write " + path.string() + ": " + std::strerror(reason) + "; free its disk or name another folder");
    }
    fs::rename(partial, path, error);
    if (error) {
        std::string const message = error.message();
        fs::remove(partial, error);
        refuse("cannot write " + path.string() + ": " + message);
    }
}

}  // namespace codetr

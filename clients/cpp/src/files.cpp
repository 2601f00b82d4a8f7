#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "codetr/client.hpp"

namespace codetr {

namespace {

constexpr std::uintmax_t kMostBytes = (std::uintmax_t{1} << 31) - 1;  // of an image, as the Python client has it

}  // namespace

std::string readFile(std::string const& path) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
        throw Error(Error::Kind::kInvalid, "cannot read " + path + ": it is a folder");
    }
    std::filesystem::file_type const type = std::filesystem::status(path, error).type();
    // what would never begin or end; a pipe that a shell has made has no name: what its path leads to is none
    bool const isNamed = std::filesystem::exists(std::filesystem::weakly_canonical(path, error), error);
    if (type == std::filesystem::file_type::character || type == std::filesystem::file_type::block ||
        (type == std::filesystem::file_type::fifo && isNamed)) {
        throw Error(Error::Kind::kInvalid, "cannot read " + path + ": it is a device or a named pipe, not a file");
    }
    std::uintmax_t const bytes = std::filesystem::file_size(path, error);  // of a shell's pipe none
    if (!error && bytes > kMostBytes) {
        throw Error(Error::Kind::kInvalid, "cannot read " + path + ": it has more than " + std::to_string(kMostBytes) + " bytes");
    }
    std::ifstream file(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file) {
        throw Error(Error::Kind::kInvalid, "cannot read " + path + ": " + std::strerror(errno));
    }
    return content;
}

}  // namespace codetr

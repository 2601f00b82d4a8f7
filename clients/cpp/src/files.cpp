#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "codetr/client.hpp"

namespace codetr {

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
    std::ifstream file(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file) {
        throw Error(Error::Kind::kInvalid, "cannot read " + path + ": " + std::strerror(errno));
    }
    return content;
}

}  // namespace codetr

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
    std::ifstream file(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file) {
        throw Error(Error::Kind::kInvalid, "cannot read " + path + ": " + std::strerror(errno));
    }
    return content;
}

}  // namespace codetr

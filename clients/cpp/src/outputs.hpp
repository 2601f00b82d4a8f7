// Where results go: a source is never overwritten, nor is a file that no earlier run wrote. As the Python client.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace codetr {

// Returns the files that the arguments name, each once: files as they are, and the images in folders, sorted, without
// hidden files, what systems keep beside pictures, and annotated pictures of earlier runs. Throws Error for a folder without images.
std::vector<std::filesystem::path> findImages(std::vector<std::string> const& arguments);

// Makes the folder. Throws Error if it is a file, or cannot be made.
void makeFolder(std::filesystem::path const& folder);

// Returns a path in `folder` for the picture of each source: stem.jpg, or stem-2.jpg and so on where that is taken.
std::vector<std::filesystem::path> planPictures(std::filesystem::path const& folder, std::vector<std::filesystem::path> const& sources);

// Throws Error if `results` is a source, or there is a file that no earlier run wrote.
void checkResults(std::filesystem::path const& results, std::vector<std::filesystem::path> const& sources);

// Writes a file beside `path` and renames it. Throws Error; then `path` is as it was.
void writeWhole(std::filesystem::path const& path, std::string const& content);

}  // namespace codetr

// What the programs do with files: pictures in, annotated pictures, detections.json and a table out.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "codetr/client.hpp"

namespace codetr {

// Returns the detections of one encoded image. Throws Error.
using Detect = std::function<std::vector<Detection>(std::string const&)>;

// File and class names come from elsewhere: what a terminal would obey is shown as a question mark.
std::string shown(std::string text);

// Returns what is wrong with an option that is a number of 0 to 1, "nan" for instance; nothing if it is one.
std::string isShare(std::string const& text);

// Detects in each file and writes what was found into the folder `output`; `threshold` is told in detections.json. Returns
// the exit status: 1 if an image failed, whose message is on stderr, 130 if Ctrl-C ended it before the last image: what was
// found until then is written. Throws Error where nothing more can succeed.
int detectFiles(std::vector<std::filesystem::path> const& paths, std::filesystem::path const& output, float threshold,
                Detect const& detect);

}  // namespace codetr

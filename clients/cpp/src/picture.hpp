// Pictures to draw on: decoded, upright, with boxes, written as JPEG.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "codetr/client.hpp"

namespace codetr {

struct Picture {
    int width = 0, height = 0;
    std::vector<unsigned char> pixels;  // RGB
};

// What the JPEG comment begins with by which a picture of an earlier run is known again, also by the Python client. A
// space and the checksum of the file follow: programs that change a picture keep its comment.
constexpr std::string_view kMark = "annotated by codetr";

// Decodes a JPEG, PNG, WebP or BMP and turns it upright. Throws Error.
Picture decode(std::string const& encoded);

// Returns the EXIF orientation, 1 to 8, of a JPEG, PNG or WebP; 1 where there is none that can be read.
int orientation(std::string_view encoded);

// Draws boxes, class names and scores in per cent; the best detections last, so that nothing hides their labels.
void draw(Picture& picture, std::vector<Detection> const& detections);

// Returns the picture as JPEG with `kMark`. Throws Error.
std::string encode(Picture const& picture);

// Whether a file's bytes are a picture that `encode` or the Python client wrote.
bool isOwn(std::string_view encoded);

}  // namespace codetr

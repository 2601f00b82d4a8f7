#include "picture.hpp"

#include <webp/decode.h>
#include <webp/demux.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

// The headers' code, of which much stays unused.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#include <stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb_easy_font.h>
#include <stb_image_write.h>
#pragma GCC diagnostic pop

namespace codetr {

namespace {

using Colour = std::array<unsigned char, 3>;

constexpr std::string_view kNoChecksum = " 00000000";
constexpr int kJpegQuality = 92;         // no visible loss
constexpr int kMinSideForText = 64;      // pixels; smaller pictures have no room for it
constexpr double kHueStep = 0.618034;    // the golden ratio, so that neighbouring labels never look alike
constexpr long kMaxPixels = 64'000'000;  // as the server
constexpr int kMaxSide = 65'535;         // as the server, and what a JPEG can have
constexpr std::string_view kExif("Exif\0\0", 6);

unsigned byteAt(std::string_view data, std::size_t index) { return index < data.size() ? static_cast<unsigned char>(data[index]) : 0; }

unsigned number(std::string_view data, std::size_t index, int bytes, bool isBig) {
    unsigned value = 0;
    for (int i = 0; i < bytes; ++i) {
        auto const place = static_cast<std::size_t>(isBig ? i : bytes - 1 - i);
        value = value << 8 | byteAt(data, index + place);
    }
    return value;
}

// The orientation of a TIFF structure, EXIF 2.3 section 4.6.4: tag 0x0112, one SHORT.
int tiffOrientation(std::string_view tiff) {
    bool const isBig = tiff.substr(0, 2) == "MM";
    if (!isBig && tiff.substr(0, 2) != "II") {
        return 1;
    }
    std::size_t const directory = number(tiff, 4, 4, isBig);
    for (unsigned i = 0, entries = number(tiff, directory, 2, isBig); i < entries; ++i) {
        std::size_t const entry = directory + 2 + std::size_t{12} * i;
        if (entry + 12 > tiff.size()) {
            return 1;
        }
        if (number(tiff, entry, 2, isBig) == 0x0112) {
            unsigned const value = number(tiff, entry + 8, 2, isBig);
            return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
        }
    }
    return 1;
}

// Calls `visit(marker, payload)` for each segment of a JPEG before its pixels, until it returns true.
template <typename Visit>
void forSegments(std::string_view jpeg, Visit visit) {
    std::size_t at = 2;
    while (at + 4 <= jpeg.size() && byteAt(jpeg, at) == 0xff) {
        unsigned const marker = byteAt(jpeg, at + 1), length = number(jpeg, at + 2, 2, true);
        if (marker == 0xda || length < 2 || visit(marker, jpeg.substr(std::min(at + 4, jpeg.size()), length - 2))) {
            return;
        }
        at += 2 + length;
    }
}

// Adler-32, in hexadecimal behind a space, of a picture whose own checksum is `kNoChecksum`.
std::string checksum(std::string_view picture) {
    std::uint32_t low = 1, high = 0;
    for (char const byte : picture) {
        low = (low + static_cast<unsigned char>(byte)) % 65521;
        high = (high + low) % 65521;
    }
    std::array<char, 16> text{};
    std::snprintf(text.data(), text.size(), " %08x", static_cast<unsigned>(high << 16 | low));
    return text.data();
}

std::string_view exifOf(std::string_view encoded) {
    std::string_view found;
    if (encoded.substr(0, 2) == "\xff\xd8") {
        forSegments(encoded, [&](unsigned marker, std::string_view payload) {
            bool const isExif = marker == 0xe1 && payload.substr(0, kExif.size()) == kExif;
            found = isExif ? payload.substr(kExif.size()) : found;
            return isExif;
        });
        return found;
    }
    bool const isPng = encoded.substr(0, 4) == "\x89PNG";
    bool const isWebp = encoded.substr(0, 4) == "RIFF" && encoded.substr(8, 4) == "WEBP";
    for (std::size_t at = isPng ? 8 : isWebp ? 12 : encoded.size(); at + 8 <= encoded.size();) {
        std::size_t const length = number(encoded, isPng ? at : at + 4, 4, isPng);
        if (encoded.substr(isPng ? at + 4 : at, 4) == (isPng ? "eXIf" : "EXIF")) {
            found = encoded.substr(at + 8, length);
            return found.substr(0, kExif.size()) == kExif ? found.substr(kExif.size()) : found;
        }
        at += isPng ? 12 + length : 8 + length + length % 2;
    }
    return {};
}

Picture turned(Picture const& from, int orientation) {
    if (orientation == 1) {
        return from;
    }
    bool const isTransposed = orientation >= 5;
    Picture to;
    to.width = isTransposed ? from.height : from.width;
    to.height = isTransposed ? from.width : from.height;
    to.pixels.resize(from.pixels.size());
    bool const flipsX = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool const flipsY = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (int y = 0; y < to.height; ++y) {
        for (int x = 0; x < to.width; ++x) {
            int u = isTransposed ? y : x, v = isTransposed ? x : y;
            u = flipsX ? from.width - 1 - u : u;
            v = flipsY ? from.height - 1 - v : v;
            auto const source = (static_cast<std::size_t>(v) * static_cast<std::size_t>(from.width) + static_cast<std::size_t>(u)) * 3;
            auto const target = (static_cast<std::size_t>(y) * static_cast<std::size_t>(to.width) + static_cast<std::size_t>(x)) * 3;
            std::copy_n(from.pixels.begin() + static_cast<std::ptrdiff_t>(source), 3,
                        to.pixels.begin() + static_cast<std::ptrdiff_t>(target));
        }
    }
    return to;
}

[[noreturn]] void cannotDecode(std::string const& reason) { throw Error(Error::Kind::kInvalid, "cannot decode the picture: " + reason); }

Picture copied(unsigned char const* pixels, int width, int height) {
    std::size_t const size = static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3;
    return {width, height, {pixels, pixels + size}};
}

// Whether the rows of a BMP, which is `width` x `height` pixels, are all there; stb reads black where the file has ended.
bool isCutShort(std::string_view bmp, int width, int height) {
    constexpr unsigned kCoreHeader = 12;  // of OS/2: sides of two bytes
    std::size_t const start = number(bmp, 10, 4, false);
    std::size_t const bits = number(bmp, number(bmp, 14, 4, false) == kCoreHeader ? 24 : 28, 2, false);
    std::size_t const row = static_cast<std::size_t>(width) * bits, padded = (row + 31) / 32 * 4;  // of four bytes each
    return start + padded * (static_cast<std::size_t>(height) - 1) + (row + 7) / 8 > bmp.size();
}

bool isAnimated(std::string const& webp) {
    WebPBitstreamFeatures features;
    auto const* const bytes = reinterpret_cast<unsigned char const*>(webp.data());
    return WebPGetFeatures(bytes, webp.size(), &features) == VP8_STATUS_OK && features.has_animation != 0;
}

// The first picture of an animated WebP, which the server detects on.
Picture firstFrame(std::string const& webp) {
    WebPData const data = {reinterpret_cast<unsigned char const*>(webp.data()), webp.size()};
    std::unique_ptr<WebPAnimDecoder, decltype(&WebPAnimDecoderDelete)> decoder(WebPAnimDecoderNew(&data, nullptr), &WebPAnimDecoderDelete);
    WebPAnimInfo about;
    std::uint8_t* rgba = nullptr;  // the decoder's own
    int time = 0;
    if (decoder == nullptr || WebPAnimDecoderGetInfo(decoder.get(), &about) == 0 ||
        WebPAnimDecoderGetNext(decoder.get(), &rgba, &time) == 0) {
        cannotDecode("damaged WebP");
    }
    Picture picture{static_cast<int>(about.canvas_width), static_cast<int>(about.canvas_height), {}};
    std::size_t const pixels = std::size_t{about.canvas_width} * about.canvas_height;
    picture.pixels.resize(pixels * 3);
    for (std::size_t i = 0; i < pixels; ++i) {
        std::copy_n(rgba + 4 * i, 3, picture.pixels.data() + 3 * i);
    }
    return picture;
}

// Colours as the Python client's: the hue steps around the circle, saturation 0.8, two brightnesses.
Colour colourOf(int label) {
    double hue = std::fmod(label * kHueStep, 1.0);
    hue = hue < 0 ? hue + 1 : hue;
    double const value = label % 2 == 0 ? 0.95 : 0.75, saturation = 0.8;
    int const sector = static_cast<int>(hue * 6.0);
    double const f = hue * 6.0 - sector, p = value * (1 - saturation), q = value * (1 - saturation * f),
                 t = value * (1 - saturation * (1 - f));
    std::array<std::array<double, 3>, 6> const sectors = {
        {{value, t, p}, {q, value, p}, {p, value, t}, {p, q, value}, {t, p, value}, {value, p, q}}};
    Colour colour;
    for (std::size_t i = 0; i < 3; ++i) {
        colour[i] = static_cast<unsigned char>(std::lround(sectors[static_cast<std::size_t>(sector % 6)][i] * 255));
    }
    return colour;
}

// Fills [x1, x2) x [y1, y2), of which only the part inside the picture.
void fill(Picture& picture, int x1, int y1, int x2, int y2, Colour const& colour) {
    for (int y = std::max(y1, 0); y < std::min(y2, picture.height); ++y) {
        for (int x = std::max(x1, 0); x < std::min(x2, picture.width); ++x) {
            auto const place = (static_cast<std::size_t>(y) * static_cast<std::size_t>(picture.width) + static_cast<std::size_t>(x)) * 3;
            std::copy(colour.begin(), colour.end(), picture.pixels.begin() + static_cast<std::ptrdiff_t>(place));
        }
    }
}

int pixel(float value) { return static_cast<int>(std::lround(std::clamp(value, -1e6f, 1e6f))); }

void drawBox(Picture& picture, Detection const& detection, int line) {
    int const x1 = pixel(detection.box[0]), y1 = pixel(detection.box[1]);
    int const x2 = std::max(x1, pixel(detection.box[2])) + 1, y2 = std::max(y1, pixel(detection.box[3])) + 1;
    Colour const colour = colourOf(detection.label);
    fill(picture, x1, y1, x2, y1 + line, colour);
    fill(picture, x1, y2 - line, x2, y2, colour);
    fill(picture, x1, y1, x1 + line, y2, colour);
    fill(picture, x2 - line, y1, x2, y2, colour);
}

void drawLabel(Picture& picture, Detection const& detection, int scale) {
    std::string text = detection.name + " " + std::to_string(std::lround(detection.score * 100)) + "%";
    // The font has ASCII alone: another character becomes one question mark.
    text.erase(std::remove_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }), text.end());
    std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    int const pad = scale, width = stb_easy_font_width(text.data()) * scale + 2 * pad,
              height = 9 * scale + 2 * pad;  // of the font's letters, with tails
    // Above the box if there is room, else inside it; never outside the picture.
    int const left = std::max(0, std::min(pixel(detection.box[0]), picture.width - width));
    int top = pixel(detection.box[1]) - height;
    top = top >= 0 ? top : std::max(0, std::min(pixel(detection.box[1]), picture.height - height));
    Colour const back = colourOf(detection.label);
    fill(picture, left, top, left + width, top + height, back);
    bool const isBright = 0.299 * back[0] + 0.587 * back[1] + 0.114 * back[2] > 128;  // Rec. 601 luma
    unsigned char const ink = isBright ? 0 : 255;
    std::vector<char> vertices(text.size() * 400 + 400);  // stb: about 270 bytes a letter
    int const quads = stb_easy_font_print(0, 0, text.data(), nullptr, vertices.data(), static_cast<int>(vertices.size()));
    for (int i = 0; i < quads; ++i) {
        std::array<float, 16> corners;  // x y z colour, four times
        std::copy_n(vertices.data() + static_cast<std::ptrdiff_t>(i) * 64, 64, reinterpret_cast<char*>(corners.data()));
        auto const at = [&](int corner, int axis) {
            return static_cast<int>(corners[static_cast<std::size_t>(corner * 4 + axis)]) * scale;
        };
        fill(picture, left + pad + at(0, 0), top + pad + at(0, 1), left + pad + at(2, 0), top + pad + at(2, 1), {ink, ink, ink});
    }
}

}  // namespace

int orientation(std::string_view encoded) { return tiffOrientation(exifOf(encoded)); }

Picture decode(std::string const& encoded) {
    auto const* const bytes = reinterpret_cast<unsigned char const*>(encoded.data());
    int width = 0, height = 0;
    if (encoded.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
        cannotDecode("it has " + std::to_string(encoded.size()) + " bytes");
    }
    bool const isWebp = WebPGetInfo(bytes, encoded.size(), &width, &height) != 0;
    int channels = 0;
    if (!isWebp && stbi_info_from_memory(bytes, static_cast<int>(encoded.size()), &width, &height, &channels) == 0) {
        cannotDecode(stbi_failure_reason());
    }
    if (static_cast<long>(width) * height > kMaxPixels) {
        cannotDecode("it has " + std::to_string(width) + "x" + std::to_string(height) + " pixels, more than 64 million");
    }
    if (std::max(width, height) > kMaxSide) {
        cannotDecode("it has " + std::to_string(width) + "x" + std::to_string(height) + " pixels, and no side may be longer than " +
                     std::to_string(kMaxSide));
    }
    if (isWebp) {
        if (isAnimated(encoded)) {
            return turned(firstFrame(encoded), orientation(encoded));
        }
        std::unique_ptr<unsigned char, decltype(&WebPFree)> pixels(WebPDecodeRGB(bytes, encoded.size(), &width, &height), &WebPFree);
        if (pixels == nullptr) {
            cannotDecode("damaged WebP");
        }
        return turned(copied(pixels.get(), width, height), orientation(encoded));
    }
    if (encoded.compare(0, 2, "BM") == 0 && isCutShort(encoded, width, height)) {
        cannotDecode("the BMP is cut short");
    }
    std::unique_ptr<unsigned char, decltype(&stbi_image_free)> pixels(
        stbi_load_from_memory(bytes, static_cast<int>(encoded.size()), &width, &height, &channels, 3), &stbi_image_free);
    if (pixels == nullptr) {
        cannotDecode(stbi_failure_reason());
    }
    return turned(copied(pixels.get(), width, height), orientation(encoded));
}

void draw(Picture& picture, std::vector<Detection> const& detections) {
    std::vector<std::size_t> order(detections.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t left, std::size_t right) { return detections[left].score < detections[right].score; });
    int const longest = std::max(picture.width, picture.height);
    int const line = std::max(1, static_cast<int>(std::lround(longest / 400.0)));
    for (std::size_t const index : order) {
        drawBox(picture, detections[index], line);
    }
    if (std::min(picture.width, picture.height) >= kMinSideForText) {
        int const scale = std::max(1, static_cast<int>(std::lround(longest / 600.0)));
        for (std::size_t const index : order) {
            drawLabel(picture, detections[index], scale);
        }
    }
}

std::string encode(Picture const& picture) {
    std::string jpeg;
    auto const append = [](void* target, void* data, int size) {
        static_cast<std::string*>(target)->append(static_cast<char const*>(data), static_cast<std::size_t>(size));
    };
    if (stbi_write_jpg_to_func(append, &jpeg, picture.width, picture.height, 3, picture.pixels.data(), kJpegQuality) == 0) {
        throw Error(Error::Kind::kInvalid, "the annotated picture cannot be encoded");
    }
    auto const length = static_cast<char>(kMark.size() + kNoChecksum.size() + 2);
    std::string const comment = std::string("\xff\xfe\0", 3) + length + std::string(kMark) + std::string(kNoChecksum);
    jpeg.insert(2, comment);  // behind the start of image
    return jpeg.replace(2 + comment.size() - kNoChecksum.size(), kNoChecksum.size(), checksum(jpeg));
}

bool isOwn(std::string_view encoded) {
    std::string_view said;
    if (encoded.substr(0, 2) == "\xff\xd8") {
        forSegments(encoded, [&](unsigned marker, std::string_view payload) {
            bool const isMark = marker == 0xfe && payload.substr(0, kMark.size()) == kMark;
            said = isMark ? payload.substr(kMark.size()) : said;
            return isMark;
        });
    }
    if (said.size() != kNoChecksum.size()) {
        return false;
    }
    std::string plain(encoded);
    plain.replace(static_cast<std::size_t>(said.data() - encoded.data()), said.size(), kNoChecksum);
    return checksum(plain) == said;
}

}  // namespace codetr

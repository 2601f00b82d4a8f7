// The C++ client: encoded images in, detections out, over HTTP.
//
//     codetr::Client client({"localhost:8000"});
//     for (codetr::Detection const& each : client.detect(codetr::readFile("street.jpg"), 0.3f))
//         std::cout << each.name << " " << each.score << "\n";
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace codetr {

struct Detection {
    std::array<float, 4> box;  // x1 y1 x2 y2 in pixels of the upright image (EXIF orientation applied)
    float score;               // 0..1
    int label;                 // class index
    std::string name;          // of the class; "class 17" where the server does not tell
};

struct Options {
    std::string url = "localhost:8000";  // host:port, http://host:port or https://host:port, a path behind it is kept
    std::string model = "codetr";        // the ensemble
    double timeout = 60.0;               // seconds for one call as a whole
    std::string caFile = {};             // certificates to trust for https; empty: those of the system
};

// A call that got no detections; the message is one line.
class Error : public std::runtime_error {
public:
    enum class Kind {
        kInvalid,        // an argument or a file, before the server was asked
        kUnreachable,    // nothing that speaks HTTP answers at the address
        kTimeout,        // no whole answer within the timeout
        kBusy,           // the server turned the request away
        kModelNotFound,  // the server has no such model
        kNotReady,       // the server has the model, but it is not loaded
        kRefused,        // the server found the request invalid, usually because of its image
        kFault,          // the server failed, or its answer is none of this service
    };

    Error(Kind what, std::string const& message) : std::runtime_error(message), kind(what) {}

    // Whether every further image would meet the same fault.
    bool isFatal() const { return kind == Kind::kUnreachable || kind == Kind::kModelNotFound || kind == Kind::kNotReady; }

    Kind const kind;
};

// A connection to a server that runs the ensemble. Belongs to one thread at a time. Nothing is retried.
class Client {
public:
    // Throws Error for options that cannot be; the server is not asked yet.
    explicit Client(Options options = {});
    ~Client();
    Client(Client&&) noexcept;
    Client& operator=(Client&&) noexcept;

    // Returns the detections of one encoded image (JPEG, PNG, WebP or BMP), in the server's order.
    // `scoreThreshold` is the lowest score wanted; without it the server's own setting holds. Throws Error.
    std::vector<Detection> detect(std::string const& image, std::optional<float> scoreThreshold = {});

    // Returns the detections of several images sent as one request, which fails as a whole. Throws Error.
    std::vector<std::vector<Detection>> detectBatch(std::vector<std::string> const& images, std::optional<float> scoreThreshold = {});

    // Returns the class names in label order of the version that answered last, which the server is asked for once;
    // empty where it keeps them to itself.
    std::vector<std::string> const& classNames();

    // Throws Error unless the model can answer now.
    void check();

private:
    struct Connection;
    std::unique_ptr<Connection> connection_;
};

// Returns a file's bytes. Throws Error.
std::string readFile(std::string const& path);

}  // namespace codetr

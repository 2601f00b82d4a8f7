// Triton's HTTP protocol: a JSON header, the tensors' bytes behind it. One curl handle, so that connections are kept.

#include "codetr/client.hpp"

#include <curl/curl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace codetr {

namespace {

using nlohmann::json;

constexpr std::size_t kMaxAnswerBytes = std::size_t{1} << 28;  // of a whole batch: far above 256 images' detections
constexpr char const kHeaderLength[] = "Inference-Header-Content-Length";

struct Answer {
    long status = 0;
    std::string body;
    std::size_t headerLength = 0;  // of the JSON in `body`; 0: all of it
    bool isTooLong = false;
};

bool startsWith(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

bool equalIgnoringCase(std::string_view left, std::string_view right) {
    auto const lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
    return std::equal(left.begin(), left.end(), right.begin(), right.end(), [&](char a, char b) { return lower(a) == lower(b); });
}

std::size_t writeBody(char* data, std::size_t size, std::size_t count, void* target) {
    auto& answer = *static_cast<Answer*>(target);
    if (answer.body.size() + size * count > kMaxAnswerBytes) {
        answer.isTooLong = true;
        return 0;  // ends the transfer
    }
    answer.body.append(data, size * count);
    return size * count;
}

std::size_t readHeader(char* data, std::size_t size, std::size_t count, void* target) {
    std::string_view const line(data, size * count);
    std::size_t const colon = line.find(':');
    if (colon != std::string_view::npos && equalIgnoringCase(line.substr(0, colon), kHeaderLength)) {
        static_cast<Answer*>(target)->headerLength = std::strtoull(std::string(line.substr(colon + 1)).c_str(), nullptr, 10);
    }
    return line.size();
}

// The name of a URL's host: between the scheme and the port or path.
std::string hostOf(std::string const& url) {
    std::size_t const start = url.find("://") + 3;
    if (url[start] == '[') {
        return url.substr(start + 1, url.find(']', start) - start - 1);
    }
    return url.substr(start, url.find_first_of(":/", start) - start);
}

bool isLoopback(std::string const& host) { return host == "localhost" || host == "::1" || startsWith(host, "127."); }

std::string oneLine(std::string text) {
    std::replace_if(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }, ' ');
    return text.size() <= 1000 ? text : text.substr(0, 1000) + " ...";
}

[[noreturn]] void notOurs(std::string const& what) { throw Error(Error::Kind::kFault, "the answer is not of this service: " + what); }

// Returns one output's values, whose shape is [images, ...]. Throws Error unless it is what the contract says.
template <typename Value>
std::vector<Value> readOutput(json const& header, std::string_view binary, std::string const& name, char const* type, std::size_t images) {
    std::size_t offset = 0;
    for (json const& output : header.at("outputs")) {
        std::size_t const size = output.at("parameters").at("binary_data_size").get<std::size_t>();
        if (size > binary.size() - offset) {
            notOurs("it ends inside of " + output.at("name").get<std::string>());
        }
        if (output.at("name") == name) {
            std::size_t elements = 1;
            for (json const& side : output.at("shape")) {
                elements *= side.get<std::size_t>();
            }
            if (output.at("datatype") != type || output.at("shape").empty() || output.at("shape")[0] != images ||
                elements > kMaxAnswerBytes || elements * sizeof(Value) != size) {
                notOurs(name + " is " + output.at("datatype").get<std::string>() + " " + output.at("shape").dump());
            }
            std::vector<Value> values(elements);
            std::memcpy(values.data(), binary.data() + offset, size);
            return values;
        }
        offset += size;
    }
    notOurs("it has no " + name);
}

}  // namespace

struct Client::Connection {
    explicit Connection(Options given) : options(std::move(given)), handle(curl_easy_init(), &curl_easy_cleanup) {
        if (handle == nullptr) {
            throw Error(Error::Kind::kFault, "libcurl cannot be started");
        }
        if (!(options.timeout > 0) || options.timeout > 1e6) {
            throw Error(Error::Kind::kInvalid, "timeout " + std::to_string(options.timeout) + ": expected seconds above 0");
        }
        base = options.url;
        if (base.find("://") == std::string::npos) {
            base = "http://" + base;
        }
        while (base.back() == '/') {
            base.pop_back();
        }
        if (!(startsWith(base, "http://") || startsWith(base, "https://")) || hostOf(base).empty()) {
            throw Error(Error::Kind::kInvalid, "url " + options.url + ": expected host:port, such as localhost:8000");
        }
        std::unique_ptr<char, decltype(&curl_free)> name(
            curl_easy_escape(handle.get(), options.model.c_str(), static_cast<int>(options.model.size())), &curl_free);
        model = base + "/v2/models/" + (name == nullptr ? "" : name.get());
    }

    // Asks the server; with a body by POST. Throws Error for everything but an answer, whatever its status.
    Answer ask(std::string const& url, std::string const* body = nullptr, std::size_t headerLength = 0) {
        CURL* const curl = handle.get();
        curl_easy_reset(curl);  // keeps the connections
        Answer answer;
        std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(nullptr, &curl_slist_free_all);
        auto const add = [&](std::string const& header) {
            curl_slist* const longer = curl_slist_append(headers.get(), header.c_str());
            if (longer != nullptr) {
                static_cast<void>(headers.release());
                headers.reset(longer);
            }
        };
        add("Expect:");  // no second of waiting for a "continue" that the server does not send
        if (body != nullptr) {
            add("Content-Type: application/octet-stream");
            add(std::string(kHeaderLength) + ": " + std::to_string(headerLength));
            curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body->size()));
            curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body->data());
        }
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
        curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
#if LIBCURL_VERSION_NUM >= 0x075500
        curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
#else
        curl_easy_setopt(curl, CURLOPT_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
        curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, std::max(1L, std::lround(options.timeout * 1e3)));  // 0: never
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &writeBody);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
        curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &readHeader);
        curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer);
        if (isLoopback(hostOf(base))) {
            curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");  // a proxy of the environment would look on its own machine
        }
        if (!options.caFile.empty()) {
            curl_easy_setopt(curl, CURLOPT_CAINFO, options.caFile.c_str());
        }
        char reason[CURL_ERROR_SIZE] = "";
        curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
        CURLcode const code = curl_easy_perform(curl);
        if (answer.isTooLong) {
            notOurs("it is longer than 256 MiB");
        }
        if (code == CURLE_OPERATION_TIMEDOUT) {
            char seconds[32];
            std::snprintf(seconds, sizeof seconds, "%g", options.timeout);
            throw Error(Error::Kind::kTimeout, "no answer from " + options.url + " within " + seconds + " s");
        }
        if (code != CURLE_OK) {
            std::string const why = *reason != '\0' ? reason : curl_easy_strerror(code);
            throw Error(Error::Kind::kUnreachable, "no server answers HTTP at " + options.url + ": " + oneLine(why));
        }
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
        return answer;
    }

    // Throws the Error of an answer that is none.
    [[noreturn]] void fail(Answer const& answer) const {
        json const body = json::parse(answer.body, nullptr, false);
        bool const isTritons = body.is_object() && body.contains("error") && body["error"].is_string();
        std::string message = isTritons ? oneLine(body["error"].get<std::string>())
                                        : "HTTP status " + std::to_string(answer.status) + ", which is not of Triton";
        if (message.find("has no available versions") != std::string::npos) {
            throw notReady();
        }
        if (answer.status == 404 || startsWith(message, "Request for unknown model")) {
            throw Error(Error::Kind::kModelNotFound, "no model '" + options.model + "' at " + options.url + ": " + message);
        }
        if (answer.status == 503 || message.find("maximum queue size") != std::string::npos) {
            throw Error(Error::Kind::kBusy, options.url + " turned the request away: " + message);
        }
        throw Error(answer.status == 400 ? Error::Kind::kRefused : Error::Kind::kFault, message);
    }

    Error notReady() const {
        return Error(Error::Kind::kNotReady, "model '" + options.model + "' at " + options.url +
                                                 " is not ready: it is loading or failed to load; the server's log says which");
    }

    Options options;
    std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> handle;
    std::string base, model;  // URLs
    std::optional<std::vector<std::string>> names;
    std::string version;  // of the model, whose names they are; the one that answered last
};

Client::Client(Options options) : connection_(std::make_unique<Connection>(std::move(options))) {}
Client::~Client() = default;
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;

std::vector<Detection> Client::detect(std::string const& image, std::optional<float> scoreThreshold) {
    return detectBatch({image}, scoreThreshold).front();
}

std::vector<std::vector<Detection>> Client::detectBatch(std::vector<std::string> const& images, std::optional<float> scoreThreshold) {
    if (images.empty()) {
        return {};
    }
    if (scoreThreshold && !(*scoreThreshold >= 0.0f && *scoreThreshold <= 1.0f)) {
        throw Error(Error::Kind::kInvalid, "score threshold " + std::to_string(*scoreThreshold) + ": expected 0..1");
    }
    std::size_t size = 0;
    for (std::string const& image : images) {
        if (image.size() > std::numeric_limits<std::uint32_t>::max()) {
            throw Error(Error::Kind::kInvalid, "an image has " + std::to_string(image.size()) + " bytes, too many for a request");
        }
        size += sizeof(std::uint32_t) + image.size();
    }
    json parameters = {{"binary_data_output", true}};
    if (scoreThreshold) {
        parameters["score_threshold"] = *scoreThreshold;
    }
    json const tensor = {
        {"name", "image"}, {"shape", {images.size(), 1}}, {"datatype", "BYTES"}, {"parameters", {{"binary_data_size", size}}}};
    std::string body = json{{"inputs", {tensor}}, {"parameters", parameters}}.dump();
    std::size_t const headerLength = body.size();
    body.reserve(headerLength + size);
    for (std::string const& image : images) {
        auto const length = static_cast<std::uint32_t>(image.size());  // little-endian, as the machines this runs on
        body.append(reinterpret_cast<char const*>(&length), sizeof length);
        body += image;
    }
    Answer const answer = connection_->ask(connection_->model + "/infer", &body, headerLength);
    if (answer.status != 200) {
        connection_->fail(answer);
    }
    try {
        std::size_t const length = answer.headerLength;
        if (length == 0 || length > answer.body.size()) {
            notOurs("it has no binary tensors");
        }
        json const header = json::parse(answer.body.begin(), answer.body.begin() + static_cast<std::ptrdiff_t>(length));
        std::string const version = header.value("model_version", "");
        if (version != connection_->version) {  // another version may have other classes
            connection_->names.reset();
            connection_->version = version;
        }
        std::vector<std::string> const& names = classNames();
        std::string_view const binary = std::string_view(answer.body).substr(length);
        auto const boxes = readOutput<float>(header, binary, "boxes", "FP32", images.size());
        auto const scores = readOutput<float>(header, binary, "scores", "FP32", images.size());
        auto const labels = readOutput<std::int32_t>(header, binary, "labels", "INT32", images.size());
        auto const counts = readOutput<std::int32_t>(header, binary, "num_detections", "INT32", images.size());
        std::size_t const rows = scores.size() / images.size();
        if (boxes.size() != 4 * scores.size() || labels.size() != scores.size() || counts.size() != images.size()) {
            notOurs("boxes, scores and labels have different numbers of rows");
        }
        std::vector<std::vector<Detection>> all(images.size());
        for (std::size_t image = 0; image < images.size(); ++image) {
            if (counts[image] < 0 || static_cast<std::size_t>(counts[image]) > rows) {
                notOurs("num_detections is " + std::to_string(counts[image]));
            }
            for (std::size_t row = image * rows; row < image * rows + static_cast<std::size_t>(counts[image]); ++row) {
                int const label = labels[row];
                bool const isNamed = label >= 0 && static_cast<std::size_t>(label) < names.size();
                all[image].push_back({{boxes[4 * row], boxes[4 * row + 1], boxes[4 * row + 2], boxes[4 * row + 3]},
                                      scores[row],
                                      label,
                                      isNamed ? names[static_cast<std::size_t>(label)] : "class " + std::to_string(label)});
            }
        }
        return all;
    } catch (json::exception const& error) {
        notOurs(error.what());
    }
}

std::vector<std::string> const& Client::classNames() {
    if (connection_->names) {
        return *connection_->names;
    }
    std::string const& version = connection_->version;
    Answer const answer = connection_->ask(connection_->model + (version.empty() ? "" : "/versions/" + version) + "/config");
    if (answer.status != 200) {
        if (answer.body.find("restricted") == std::string::npos) {
            connection_->fail(answer);
        }
        return connection_->names.emplace();  // the server's operator keeps its configuration closed
    }
    try {
        json const config = json::parse(answer.body);
        json const parameters = config.value("parameters", json::object());
        std::string const text = parameters.value("class_names", json::object()).value("string_value", "[]");
        return connection_->names.emplace(json::parse(text).get<std::vector<std::string>>());
    } catch (json::exception const& error) {
        notOurs(error.what());
    }
}

void Client::check() {
    if (connection_->ask(connection_->model + "/ready").status == 200) {
        return;
    }
    Answer const metadata = connection_->ask(connection_->model);  // of an unknown model an error that says so
    if (metadata.status != 200) {
        connection_->fail(metadata);
    }
    throw connection_->notReady();
}

}  // namespace codetr

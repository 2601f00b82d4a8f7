// A stand-in for libcublasLt on the CPU, for one product: E4M3, transposed times not transposed, with bias, activation and scales.
// It reads descriptors as NVIDIA's documentation says, by columns, and refuses what its table of FP8 products does not have.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>

namespace {

constexpr int kSuccess = 0, kInvalid = 7, kUnsupported = 15;

struct Layout {
    int32_t type;
    uint64_t rows, columns;
    int64_t stride;
};

struct Operation {
    std::map<int32_t, std::string> attributes;

    template <typename Value>
    Value get(int32_t attribute) const {
        Value value{};
        auto const found = attributes.find(attribute);
        if (found != attributes.end() && found->second.size() == sizeof value) std::memcpy(&value, found->second.data(), sizeof value);
        return value;
    }
};

int chosen = 0;  // how often an algorithm was asked for

float fromE4m3(uint8_t bits) {
    int const exponent = bits >> 3 & 15, fraction = bits & 7;
    float const size = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    return bits & 128 ? -size : size;
}

// To the nearest, the even one of two; larger ones become the largest.
uint8_t toE4m3(float value) {
    uint8_t best = 0;
    for (uint8_t bits = 1; bits < 127; ++bits) {
        float const now = std::fabs(std::fabs(value) - fromE4m3(bits)), before = std::fabs(std::fabs(value) - fromE4m3(best));
        if (now < before || (now == before && bits % 2 == 0)) best = bits;
    }
    return std::signbit(value) ? best | 128 : best;
}

float fromHalf(uint16_t bits, int32_t type) {
    if (type == 14) {  // bfloat16
        uint32_t const wide = uint32_t{bits} << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    int const exponent = bits >> 10 & 31, fraction = bits & 1023;
    float const size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return bits & 32768 ? -size : size;
}

float activate(float value, uint32_t epilogue) {
    if (epilogue == 6) return std::max(value, 0.0F);
    if (epilogue == 36) return value / 2 * (1 + std::tanh(0.7978845608F * (value + 0.044715F * value * value * value)));
    return value;
}

// Of the alignment of an address or number, up to 256.
uint8_t logarithm(uint64_t address) {
    uint8_t bits = 0;
    while (bits < 8 && (address >> bits & 1) == 0) ++bits;
    return bits;
}

uint8_t logarithm(void const* pointer) { return logarithm(reinterpret_cast<uintptr_t>(pointer)); }

}  // namespace

extern "C" {

int timesChosen() { return chosen; }

int cublasLtCreate(void** handle) {
    static int one;
    *handle = &one;
    return kSuccess;
}

int cublasLtMatmulDescCreate(Operation** operation, int compute, int scale) {
    *operation = new Operation;
    return compute == 68 && scale == 0 ? kSuccess : kInvalid;
}

int cublasLtMatmulDescDestroy(Operation* operation) {
    delete operation;
    return kSuccess;
}

int cublasLtMatmulDescSetAttribute(Operation* operation, int attribute, void const* value, size_t bytes) {
    size_t const size = attribute == 25 ? 1 : attribute == 8 || (attribute >= 17 && attribute <= 20) ? 8 : 4;
    if (bytes != size) return kInvalid;
    operation->attributes[attribute] = std::string(static_cast<char const*>(value), bytes);
    return kSuccess;
}

int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = new Layout{type, rows, columns, stride};
    return kSuccess;
}

int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return kSuccess;
}

int cublasLtMatmulPreferenceCreate(std::map<int32_t, uint64_t>** wishes) {
    *wishes = new std::map<int32_t, uint64_t>;
    return kSuccess;
}

int cublasLtMatmulPreferenceDestroy(std::map<int32_t, uint64_t>* wishes) {
    delete wishes;
    return kSuccess;
}

int cublasLtMatmulPreferenceSetAttribute(std::map<int32_t, uint64_t>* wishes, int attribute, void const* value, size_t bytes) {
    if (bytes != (attribute == 1 ? 8U : 4U)) return kInvalid;
    std::memcpy(&(*wishes)[attribute], value, bytes);
    return kSuccess;
}

// Offers an algorithm for matrices of the alignment asked for and a bias of its own alignment, whose logarithms are its first and last
// bytes, and a workspace of 4096 bytes; none for 48 channels out.
int cublasLtMatmulAlgoGetHeuristic(void*, Operation const* operation, Layout const* a, Layout const* b, Layout const* c, Layout const* d,
                                   std::map<int32_t, uint64_t> const* wishes, int wanted, uint64_t* result, int* found) {
    ++chosen;
    auto const half = operation->get<int32_t>(26);
    bool const types = a->type == 28 && b->type == 28 && d->type == 28 && c->type == half && (half == 2 || half == 14);
    bool const shapes =
        a->rows == b->rows && d->rows == a->columns && d->columns == b->columns && c->rows == d->rows && c->columns == d->columns;
    bool const transposes = operation->get<int32_t>(3) == 1 && operation->get<int32_t>(4) == 0;
    if (!types || !shapes || !transposes || operation->get<int8_t>(25) != 1 || wishes->at(1) < 4096) return kUnsupported;
    *found = d->rows == 48 ? 0 : std::min(wanted, 1);
    std::memset(result, logarithm(wishes->at(5)), 64);
    reinterpret_cast<uint8_t*>(result)[63] = logarithm(operation->get<void const*>(8));
    result[8] = 4096;
    return kSuccess;
}

int cublasLtMatmul(void*, Operation const* operation, float const* alpha, uint8_t const* a, Layout const* a_layout, uint8_t const* b,
                   Layout const* b_layout, float const* beta, void const* c, Layout const*, uint8_t* d, Layout const* d_layout,
                   uint8_t const* algorithm, void* workspace, size_t bytes, void*) {
    bool const alone = *alpha == 1 && *beta == 0 && c == nullptr;
    auto const bias = operation->get<uint16_t const*>(8);
    bool fits = logarithm(bias) == algorithm[63];
    for (uint8_t const* const matrix : {a, b, static_cast<uint8_t const*>(d)}) {
        fits = fits && logarithm(matrix) >= algorithm[0];
    }
    if (!alone || workspace == nullptr || bytes != 4096 || !fits) return kInvalid;
    float const scale = *operation->get<float const*>(17) * *operation->get<float const*>(18);
    for (uint64_t column = 0; column < d_layout->columns; ++column) {
        for (uint64_t row = 0; row < d_layout->rows; ++row) {
            float sum = 0;
            for (uint64_t k = 0; k < a_layout->rows; ++k) {
                sum += fromE4m3(a[k + row * a_layout->stride]) * fromE4m3(b[k + column * b_layout->stride]);
            }
            float const value = activate(scale * sum + fromHalf(bias[row], operation->get<int32_t>(26)), operation->get<uint32_t>(7));
            d[row + column * d_layout->stride] = toE4m3(value * *operation->get<float const*>(20));
        }
    }
    return kSuccess;
}
}

// What the tests of each plugin share: checks that count, descriptions of tensors, numbers to and from the GPU.
#pragma once

#include "plugin_driver.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

// The plugins' own tests. Without a GPU everything but the computation of `enqueue` runs.
void testMsDeformAttn(bool gpu);
void testWindowAttn(bool gpu);

inline int passed = 0, failed = 0;

inline void check(bool ok, char const* what) {
    ok ? ++passed : ++failed;
    std::printf("%s %s\n", ok ? "ok  " : "FAIL", what);
}

// ---- Tensors ----

inline nvinfer1::Dims dims(std::initializer_list<int64_t> sizes) {
    nvinfer1::Dims d{};
    for (int64_t const size : sizes) d.d[d.nbDims++] = static_cast<Size>(size);
    return d;
}

inline nvinfer1::PluginTensorDesc linear(std::initializer_list<int64_t> sizes, nvinfer1::DataType type) {
    return {dims(sizes), type, nvinfer1::TensorFormat::kLINEAR, 1.f};
}

inline int64_t volume(nvinfer1::Dims const& d) {
    int64_t n = 1;
    for (int32_t i = 0; i < d.nbDims; ++i) n *= d.d[i];
    return n;
}

#if NV_TENSORRT_MAJOR >= 9
inline std::vector<nvinfer1::DataType> const kHalfTypes = {nvinfer1::DataType::kHALF, nvinfer1::DataType::kBF16};
inline bool isBfloat16(nvinfer1::DataType type) { return type == nvinfer1::DataType::kBF16; }
#else
inline std::vector<nvinfer1::DataType> const kHalfTypes = {nvinfer1::DataType::kHALF};
inline bool isBfloat16(nvinfer1::DataType) { return false; }
#endif

inline char const* nameOf(nvinfer1::DataType type) {
    return type == nvinfer1::DataType::kHALF ? "FP16" : isBfloat16(type) ? "BF16" : "FP32";
}

// ---- Expressions of dimensions ----

// TensorRT's classes forward to implementations, which the host supplies.
struct ExprImpl : nvinfer1::apiv::VDimensionExpr {
    Size value;
    explicit ExprImpl(Size v) : value(v) {}
    bool isConstant() const override { return true; }
    Size getConstantValue() const override { return value; }
    bool isSizeTensor() const { return false; }  // from TensorRT 10 on, as declareSizeTensor is
};

struct Expr : nvinfer1::IDimensionExpr {
    ExprImpl impl;
    explicit Expr(Size v) : impl(v) { mImpl = &impl; }
};

struct BuilderImpl : nvinfer1::apiv::VExprBuilder {
    std::vector<std::unique_ptr<Expr>> made;
    nvinfer1::IDimensionExpr const* constant(Size value) override {
        made.push_back(std::make_unique<Expr>(value));
        return made.back().get();
    }
    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& a,
                                              nvinfer1::IDimensionExpr const& b) override {
        if (op != nvinfer1::DimensionOperation::kPROD) return nullptr;
        return constant(a.getConstantValue() * b.getConstantValue());
    }
    nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) {
        return nullptr;
    }
};

struct Builder : nvinfer1::IExprBuilder {
    BuilderImpl impl;
    Builder() { mImpl = &impl; }
};

inline nvinfer1::DimsExprs expressions(Builder& builder, nvinfer1::Dims const& d) {
    nvinfer1::DimsExprs out{};
    out.nbDims = d.nbDims;
    for (int32_t i = 0; i < d.nbDims; ++i) out.d[i] = builder.constant(d.d[i]);
    return out;
}

// ---- Plugins from fields ----

inline Plugin makePlugin(char const* name, Fields const& fields) {
    nvinfer1::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return Plugin(name, &collection);
}

inline nvinfer1::PluginField field(char const* name, std::vector<int32_t> const& numbers) {
    return {name, numbers.data(), nvinfer1::PluginFieldType::kINT32, static_cast<int32_t>(numbers.size())};
}

// ---- Numbers of a type ----

inline double rounded(double x, nvinfer1::DataType type) {
    if (type == nvinfer1::DataType::kHALF) return static_cast<double>(__half2float(__float2half(static_cast<float>(x))));
    if (isBfloat16(type)) return static_cast<double>(__bfloat162float(__float2bfloat16(static_cast<float>(x))));
    return static_cast<double>(static_cast<float>(x));
}

// `count` numbers of `next`, as a tensor of `type` holds them.
template <typename Next>
std::vector<double> drawn(int64_t count, nvinfer1::DataType type, Next next) {
    std::vector<double> v(count);
    for (double& x : v) x = rounded(next(), type);
    return v;
}

inline std::vector<char> pack(std::vector<double> const& v, nvinfer1::DataType type) {
    std::vector<char> out(v.size() * (type == nvinfer1::DataType::kFLOAT ? 4 : 2));
    for (size_t i = 0; i < v.size(); ++i) {
        auto const f = static_cast<float>(v[i]);
        if (type == nvinfer1::DataType::kHALF)
            reinterpret_cast<__half*>(out.data())[i] = __float2half(f);
        else if (isBfloat16(type))
            reinterpret_cast<__nv_bfloat16*>(out.data())[i] = __float2bfloat16(f);
        else
            reinterpret_cast<float*>(out.data())[i] = f;
    }
    return out;
}

inline double unpack(std::vector<char> const& v, size_t i, nvinfer1::DataType type) {
    if (type == nvinfer1::DataType::kHALF) return static_cast<double>(__half2float(reinterpret_cast<__half const*>(v.data())[i]));
    if (isBfloat16(type)) return static_cast<double>(__bfloat162float(reinterpret_cast<__nv_bfloat16 const*>(v.data())[i]));
    return static_cast<double>(reinterpret_cast<float const*>(v.data())[i]);
}

inline bool cuda(cudaError_t error) {
    if (error != cudaSuccess) std::printf("    CUDA: %s\n", cudaGetErrorString(error));
    return error == cudaSuccess;
}

// Runs `enqueue` on tensors of these bytes, on a stream of its own and on the default stream, on which TensorRT 8.5 times
// plugins. Returns the output's bytes, or nothing if a call failed or the two differ.
inline std::vector<char> runEnqueue(Plugin const& plugin, Tensors const& in, std::vector<std::vector<char>> const& inputs,
                                    nvinfer1::PluginTensorDesc const& out) {
    std::vector<char> result(volume(out.dims) * (out.type == nvinfer1::DataType::kFLOAT ? 4 : 2), '\xff');  // NaN in all three types
    std::vector<void*> device(inputs.size() + 1, nullptr);
    void*& output = device.back();
    cudaStream_t stream = nullptr;
    bool ok = plugin.changeShapes(in) && cuda(cudaStreamCreate(&stream));
    for (size_t i = 0; i < inputs.size(); ++i) {
        ok = ok && cuda(cudaMalloc(&device[i], inputs[i].size())) &&
             cuda(cudaMemcpy(device[i], inputs[i].data(), inputs[i].size(), cudaMemcpyHostToDevice));
    }
    std::vector<char> again = result;
    ok = ok && cuda(cudaMalloc(&output, result.size()));
    auto const run = [&](cudaStream_t where, std::vector<char>& bytes) {
        return cuda(cudaMemcpy(output, bytes.data(), bytes.size(), cudaMemcpyHostToDevice)) &&
               plugin.enqueue(in.data(), &out, device.data(), &output, where) && cuda(cudaStreamSynchronize(where)) &&
               cuda(cudaMemcpy(bytes.data(), output, bytes.size(), cudaMemcpyDeviceToHost));
    };
    ok = ok && run(stream, result) && run(nullptr, again) && result == again;
    for (void* const pointer : device) cudaFree(pointer);
    if (stream) cudaStreamDestroy(stream);
    return ok ? result : std::vector<char>();
}

// Of numbers of `type` against exact ones; infinite where there are none.
inline double relativeError(std::vector<char> const& result, std::vector<double> const& expected, nvinfer1::DataType type) {
    if (result.empty()) return std::numeric_limits<double>::infinity();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        double const d = unpack(result, i, type) - expected[i];
        difference += d * d;
        norm += expected[i] * expected[i];
    }
    return std::sqrt(difference / norm);
}

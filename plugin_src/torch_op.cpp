// torch.ops.codetr.ms_deform_attn on CUDA, through PyTorch's stable ABI: one build serves every PyTorch from 2.11 on.
//
// Schema, shapes and types: builder/operators/ms_deform_attn.py and README.md in this folder.

#include "ms_deform_attn.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

// Declared by the header above only where CUDA headers of PyTorch are asked for.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace message = codetr::message;

// Refuses the inputs with a message and the values in the places of its {}.
template <typename... Values>
void expect(bool fits, char const* words, Values const&... values) {
    if (fits) return;
    auto const text = [](auto const& value) {
        std::ostringstream out;
        out << value;
        return out.str();
    };
    STD_TORCH_CHECK(false, codetr::kOperatorName, ": ", codetr::fill(words, {text(values)...}));
}

codetr::ElementType elementType(Tensor const& value) {
    switch (value.scalar_type()) {
        case ScalarType::Float: return codetr::ElementType::kFloat32;
        case ScalarType::Half: return codetr::ElementType::kFloat16;
        case ScalarType::BFloat16: return codetr::ElementType::kBFloat16;
        default: break;
    }
    STD_TORCH_CHECK(false, codetr::kOperatorName, ": ", message::kValueType);
}

void checkTensor(codetr::Input input, Tensor const& tensor, Tensor const& value, ScalarType type, std::initializer_list<int64_t> sizes) {
    char const* const name = codetr::kInputNames[input];
    expect(tensor.is_cuda() && tensor.get_device_index() == value.get_device_index(), message::kDevice, name);
    expect(tensor.scalar_type() == type, message::kType, name);
    expect(tensor.dim() == static_cast<int64_t>(sizes.size()), message::kAxes, name, sizes.size(), tensor.dim());
    bool fits = true;
    std::string wanted, actual;
    int64_t axis = 0;
    for (int64_t const size : sizes) {
        char const* const comma = axis == 0 ? "" : ", ";
        wanted += comma + std::to_string(size);
        actual += comma + std::to_string(tensor.size(axis));
        fits = fits && tensor.size(axis) == size;
        ++axis;
    }
    expect(fits, message::kShape, name, "(" + wanted + ")", "(" + actual + ")");
}

Tensor msDeformAttn(Tensor value, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits,
                    std::vector<int64_t> spatial_shapes, std::optional<Tensor> valid_shapes) {
    expect(value.dim() == 4, message::kAxes, codetr::kInputNames[codetr::kValue], 4, value.dim());
    expect(sampling_offsets.dim() == 6, message::kAxes, codetr::kInputNames[codetr::kSamplingOffsets], 6, sampling_offsets.dim());
    expect(reference_points.dim() == 4, message::kAxes, codetr::kInputNames[codetr::kReferencePoints], 4, reference_points.dim());
    int64_t const batch = value.size(0), heads = value.size(2), dim = value.size(3);
    int64_t const queries = sampling_offsets.size(1), levels = sampling_offsets.size(3), points = sampling_offsets.size(4);
    ScalarType const type = value.scalar_type();
    expect(static_cast<int64_t>(spatial_shapes.size()) == 2 * levels, message::kSizes, levels, spatial_shapes.size());
    for (int64_t const side : spatial_shapes) {
        STD_TORCH_CHECK(codetr::isLevelSide(side), codetr::kOperatorName, ": ", message::kSides, ", got ", side);
    }
    std::vector<int32_t> const shapes(spatial_shapes.begin(), spatial_shapes.end());
    checkTensor(codetr::kSamplingOffsets, sampling_offsets, value, type, {batch, queries, heads, levels, points, 2});
    checkTensor(codetr::kAttentionLogits, attention_logits, value, type, {batch, queries, heads, levels, points});
    checkTensor(codetr::kReferencePoints, reference_points, value, ScalarType::Float, {batch, queries, levels, reference_points.size(3)});
    if (valid_shapes) checkTensor(codetr::kValidShapes, *valid_shapes, value, ScalarType::Int, {batch, levels, 2});

    torch::stable::accelerator::DeviceGuard const guard(value.get_device_index());
    value = torch::stable::contiguous(value);
    reference_points = torch::stable::contiguous(reference_points);
    sampling_offsets = torch::stable::contiguous(sampling_offsets);
    attention_logits = torch::stable::contiguous(attention_logits);
    if (valid_shapes) valid_shapes = torch::stable::contiguous(*valid_shapes);
    Tensor output = torch::stable::new_empty(value, {batch, queries, heads * dim});

    codetr::MsDeformAttn call{};
    call.type = elementType(value);
    call.value = value.const_data_ptr();
    call.reference_points = static_cast<float const*>(reference_points.const_data_ptr());
    call.sampling_offsets = sampling_offsets.const_data_ptr();
    call.attention_logits = attention_logits.const_data_ptr();
    call.valid_shapes = valid_shapes ? static_cast<int32_t const*>(valid_shapes->const_data_ptr()) : nullptr;
    call.output = output.mutable_data_ptr();
    call.batch = static_cast<int32_t>(batch);
    call.queries = static_cast<int32_t>(queries);
    call.heads = static_cast<int32_t>(heads);
    call.dim = static_cast<int32_t>(dim);
    call.levels = static_cast<int32_t>(levels);
    call.points = static_cast<int32_t>(points);
    call.reference_dim = static_cast<int32_t>(reference_points.size(3));
    call.spatial_shapes = shapes.data();
    char const* const fault = codetr::findFault(call);
    STD_TORCH_CHECK(fault == nullptr, codetr::kOperatorName, ": ", fault);
    int64_t const tokens = codetr::countTokens(call.spatial_shapes, call.levels);
    expect(value.size(1) == tokens, message::kTokens, value.size(1), tokens);

    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(value.get_device_index(), &stream) == AOTI_TORCH_SUCCESS, codetr::kOperatorName,
                    ": the device of value has no current stream");
    cudaError_t const error = codetr::launchMsDeformAttn(call, static_cast<cudaStream_t>(stream));
    STD_TORCH_CHECK(error == cudaSuccess, codetr::kOperatorName, ": the launch failed: ", cudaGetErrorString(error));
    return output;
}

// A program without builder.operators.ms_deform_attn gets the schema from here; builder.operators.cuda, whose schema is Python's,
// says so in the environment, since PyTorch prints an error for every second definition.
bool schemaIsDefined() { return std::getenv(codetr::kSchemaVariable) != nullptr; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(codetr, library) {
    if (!schemaIsDefined()) library.def(codetr::kSchema);
}

STABLE_TORCH_LIBRARY_IMPL(codetr, CUDA, library) { library.impl(codetr::kOperatorName, TORCH_BOX(&msDeformAttn)); }

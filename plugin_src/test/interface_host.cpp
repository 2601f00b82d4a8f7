// interface.h and call.h for Python: a library that any C++ compiler makes, read by tests/plugin_src/test_interface.py.
#include "../call.h"

#include <cstddef>
#include <sstream>

namespace {

using namespace codetr;

// A JSON object that grows.
class Object {
public:
    void add(char const* name, char const* text) { put(name) << '"' << text << '"'; }  // our texts have nothing to escape
    void add(char const* name, int64_t number) { put(name) << number; }
    void add(char const* name, Object const& object) { put(name) << object.json(); }
    std::string json() const { return "{" + out_.str() + "}"; }

private:
    std::ostream& put(char const* name) { return out_ << (out_.tellp() > 0 ? ", " : "") << '"' << name << "\": "; }

    std::ostringstream out_;
};

#define ADD(name) object.add(#name, name)

Object constants() {
    Object object;
    ADD(kOperatorName);
    ADD(kSchema);
    ADD(kSchemaVariable);
    ADD(kPluginName);
    ADD(kPluginVersion);
    ADD(kPluginNamespace);
    ADD(kSpatialShapesField);
    ADD(kWindowPluginName);
    ADD(kWindowSizeField);
    ADD(kShiftField);
    ADD(kMaxLevels);
    ADD(kChannelMultiple);
    ADD(kMaxLevelSide);
    ADD(kMaxTokens);
    return object;
}

Object messages() {
    Object object;
#define ADD_MESSAGE(name, text) object.add(#name, message::name);
    CODETR_MESSAGES(ADD_MESSAGE)
    return object;
}

// Each input's position by its name: by that which the code has for it, and by that which it is shown with.
Object inputs() {
    Object object;
    object.add("value", kValue);
    object.add("reference_points", kReferencePoints);
    object.add("sampling_offsets", kSamplingOffsets);
    object.add("attention_logits", kAttentionLogits);
    object.add("valid_shapes", kValidShapes);
    return object;
}

Object inputNames() {
    Object object;
    for (int32_t i = 0; i < kMaxInputs; ++i) object.add(kInputNames[i], i);
    return object;
}

Object windowInputs() {
    Object object;
    object.add("qkv", kQkv);
    object.add("bias_table", kBiasTable);
    object.add("qkv_bias", kQkvBias);
    return object;
}

Object windowInputNames() {
    Object object;
    for (int32_t i = 0; i < kMaxWindowInputs; ++i) object.add(kWindowInputNames[i], i);
    return object;
}

// Where each field of a call lies.
Object fields() {
    Object object;
#define ADD_FIELD(name) object.add(#name, static_cast<int64_t>(offsetof(MsDeformAttn, name)))
    ADD_FIELD(type);
    ADD_FIELD(value);
    ADD_FIELD(reference_points);
    ADD_FIELD(sampling_offsets);
    ADD_FIELD(attention_logits);
    ADD_FIELD(valid_shapes);
    ADD_FIELD(output);
    ADD_FIELD(batch);
    ADD_FIELD(queries);
    ADD_FIELD(heads);
    ADD_FIELD(dim);
    ADD_FIELD(levels);
    ADD_FIELD(points);
    ADD_FIELD(reference_dim);
    ADD_FIELD(spatial_shapes);
    object.add("end", static_cast<int64_t>(sizeof(MsDeformAttn)));
    return object;
}

Object types() {
    Object object;
    object.add("float32", static_cast<int64_t>(ElementType::kFloat32));
    object.add("float16", static_cast<int64_t>(ElementType::kFloat16));
    object.add("bfloat16", static_cast<int64_t>(ElementType::kBFloat16));
    return object;
}

}  // namespace

extern "C" char const* describeInterface() {
    static std::string json;
    Object object;
    object.add("constants", constants());
    object.add("messages", messages());
    object.add("inputs", inputs());
    object.add("input_names", inputNames());
    object.add("window_inputs", windowInputs());
    object.add("window_input_names", windowInputNames());
    object.add("fields", fields());
    object.add("types", types());
    json = object.json();
    return json.c_str();
}

extern "C" char const* describeFault(MsDeformAttn const* call) { return findFault(*call); }

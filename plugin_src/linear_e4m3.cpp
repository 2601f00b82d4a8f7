#include "linear_e4m3.h"

#include <dlfcn.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <mutex>
#include <tuple>

namespace codetr {

namespace cublaslt {

namespace {

// The one that the process has loaded, or else one that can be found; newest first.
void* openLibrary() {
    for (int const mode : {RTLD_LAZY | RTLD_NOLOAD, +RTLD_LAZY}) {
        for (char const* const name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
            if (void* const opened = dlopen(name, mode)) return opened;
        }
    }
    return nullptr;
}

template <typename Function>
bool find(void* opened, char const* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(opened, name));
    return function != nullptr;
}

bool findAll(void* opened, Library& found) {
    return find(opened, "cublasLtCreate", found.create) && find(opened, "cublasLtMatmulDescCreate", found.createOperation) &&
           find(opened, "cublasLtMatmulDescDestroy", found.destroyOperation) &&
           find(opened, "cublasLtMatmulDescSetAttribute", found.setOperation) &&
           find(opened, "cublasLtMatrixLayoutCreate", found.createLayout) &&
           find(opened, "cublasLtMatrixLayoutDestroy", found.destroyLayout) &&
           find(opened, "cublasLtMatmulPreferenceCreate", found.createWishes) &&
           find(opened, "cublasLtMatmulPreferenceDestroy", found.destroyWishes) &&
           find(opened, "cublasLtMatmulPreferenceSetAttribute", found.setWishes) &&
           find(opened, "cublasLtMatmulAlgoGetHeuristic", found.choose) && find(opened, "cublasLtMatmul", found.multiply);
}

}  // namespace

Library const* library() {
    static Library found{};
    static bool const complete = [] {
        void* const opened = openLibrary();
        return opened != nullptr && findAll(opened, found);
    }();
    return complete ? &found : nullptr;
}

}  // namespace cublaslt

namespace {

constexpr uint64_t kMaxWorkspace = uint64_t{32} << 20;  // bytes; what NVIDIA recommends for Hopper
constexpr uint32_t kMaxAlignment = 256;                 // bytes; more is of no use to cuBLASLt
constexpr int32_t kDeviceLimit = 64;                    // GPUs of a machine

// The most bytes, a power of two, that all pointers are aligned to.
uint32_t alignmentOf(std::initializer_list<void const*> pointers) {
    uint32_t alignment = kMaxAlignment;
    for (void const* const pointer : pointers) {
        while (!aligned(pointer, alignment)) alignment /= 2;
    }
    return alignment;
}

// The descriptors of a call. cuBLASLt's matrices are stored by columns: it reads ours, stored by rows, as their transposes, and is
// asked for output^T [out, rows] = (weight^T)^T x^T, in which the bias belongs to the rows.
class Descriptors {
public:
    Descriptors(cublaslt::Library const& library, LinearE4m3 const& call) : library_(library) {
        using namespace cublaslt;
        int32_t const half = call.bias_type == ElementType::kFloat16 ? kFloat16 : kBFloat16;
        Epilogue const epilogue = call.activation == Activation::kRelu   ? kReluBias
                                  : call.activation == Activation::kGelu ? kGeluBias  // the approximation by tanh
                                                                         : kBias;
        auto const in = static_cast<uint64_t>(call.in), out = static_cast<uint64_t>(call.out), rows = static_cast<uint64_t>(call.rows);
        note(library.createOperation(&operation, kComputeFloat32, kFloat32));
        set(kTransposeA, kTransposed);
        set(kTransposeB, kNotTransposed);
        set(kEpilogue, epilogue);
        set(kBiasPointer, call.bias);
        set(kBiasType, half);
        set(kScaleOfA, call.weight_scale);
        set(kScaleOfB, call.x_scale);
        set(kScaleOfD, call.factor);
        set(kFastAccumulation, int8_t{1});
        note(library.createLayout(&weight, kFloat8E4M3, in, out, call.in));
        note(library.createLayout(&x, kFloat8E4M3, in, rows, call.in));
        // What would be added, but is not: cuBLASLt wants half precision, of the bias's type, beside an output in E4M3.
        note(library.createLayout(&added, half, out, rows, call.out));
        note(library.createLayout(&output, kFloat8E4M3, out, rows, call.out));
    }

    ~Descriptors() {
        for (cublaslt::Layout const layout : {weight, x, added, output}) {
            if (layout != nullptr) library_.destroyLayout(layout);
        }
        if (operation != nullptr) library_.destroyOperation(operation);
    }

    Descriptors(Descriptors const&) = delete;
    Descriptors& operator=(Descriptors const&) = delete;

    // The first status that was no success, or success.
    int32_t status() const { return status_; }

    cublaslt::Operation operation = nullptr;
    cublaslt::Layout weight = nullptr, x = nullptr, added = nullptr, output = nullptr;

private:
    void note(int32_t status) {
        if (status_ == cublaslt::kSuccess) status_ = status;
    }

    template <typename Value>
    void set(cublaslt::Attribute attribute, Value const& value) {
        if (status_ == cublaslt::kSuccess) note(library_.setOperation(operation, attribute, &value, sizeof value));
    }

    cublaslt::Library const& library_;
    int32_t status_ = cublaslt::kSuccess;
};

std::string failed(char const* what, int32_t status) {
    return std::string("cuBLASLt ") + what + " (status " + std::to_string(status) + ")";
}

std::string choose(cublaslt::Library const& library, LinearE4m3 const& call, uint32_t alignment, LinearPlan& plan) {
    using namespace cublaslt;
    Descriptors const descriptors(library, call);
    if (descriptors.status() != kSuccess) return failed("refused to describe the product", descriptors.status());
    Wishes wishes = nullptr;
    int32_t status = library.createWishes(&wishes);
    if (status != kSuccess) return failed("made no preference", status);
    status = library.setWishes(wishes, kWorkspaceBytes, &kMaxWorkspace, sizeof kMaxWorkspace);
    for (Preference const preference : {kAlignmentOfA, kAlignmentOfB, kAlignmentOfC, kAlignmentOfD}) {
        if (status == kSuccess) status = library.setWishes(wishes, preference, &alignment, sizeof alignment);
    }
    Choice choice{};
    int32_t found = 0;
    if (status == kSuccess) {
        status = library.choose(plan.handle, descriptors.operation, descriptors.weight, descriptors.x, descriptors.added,
                                descriptors.output, wishes, 1, &choice, &found);
    }
    library.destroyWishes(wishes);
    if (status == kSuccess && found > 0) status = choice.state;
    if (status != kSuccess || found < 1) {
        return failed("has no algorithm", status) + " for [" + std::to_string(call.rows) + ", " + std::to_string(call.in) + "] x [" +
               std::to_string(call.out) + ", " + std::to_string(call.in) + "] with activation " +
               std::to_string(static_cast<int64_t>(call.activation)) + " and an output in E4M3; build without fp8";
    }
    plan.algorithm = choice.algorithm;
    plan.workspace = choice.workspace;
    return {};
}

}  // namespace

std::string planLinearE4m3(LinearE4m3 const& call, int32_t device, LinearPlan& plan) {
    using Key = std::tuple<int32_t, int64_t, int64_t, int64_t, Activation, ElementType, uint32_t, uint32_t>;
    static std::mutex mutex;
    static std::map<Key, LinearPlan> plans;
    static cublaslt::Handle handles[kDeviceLimit] = {};  // kept until the process ends, as what they hold is the GPU's
    cublaslt::Library const* const library = cublaslt::library();
    if (library == nullptr) return "libcublasLt.so.13 and .12 cannot be loaded; PyTorch for CUDA brings one of them";
    if (device < 0 || device >= kDeviceLimit) return "there are more than 64 GPUs";
    uint32_t const alignment = alignmentOf({call.x, call.weight, call.output});
    uint32_t const of_bias = alignmentOf({call.bias});  // cuBLASLt looks at its address when it chooses
    Key const key{device, call.rows, call.in, call.out, call.activation, call.bias_type, alignment, of_bias};
    std::lock_guard<std::mutex> const lock(mutex);
    if (auto const known = plans.find(key); known != plans.end()) {
        plan = known->second;
        return {};
    }
    if (handles[device] == nullptr) {
        int32_t const status = library->create(&handles[device]);
        if (status != cublaslt::kSuccess) return failed("does not start", status);
    }
    plan.handle = handles[device];
    std::string fault = choose(*library, call, alignment, plan);
    if (fault.empty()) plans.emplace(key, plan);
    return fault;
}

std::string launchLinearE4m3(LinearE4m3 const& call, LinearPlan const& plan, void* workspace, CUstream_st* stream) {
    cublaslt::Library const& library = *cublaslt::library();  // which made the plan
    Descriptors const descriptors(library, call);
    if (descriptors.status() != cublaslt::kSuccess) return failed("refused to describe the product", descriptors.status());
    float const one = 1, zero = 0;
    int32_t const status =
        library.multiply(plan.handle, descriptors.operation, &one, call.weight, descriptors.weight, call.x, descriptors.x, &zero, nullptr,
                         descriptors.added, call.output, descriptors.output, &plan.algorithm, workspace, plan.workspace, stream);
    return status == cublaslt::kSuccess ? std::string() : failed("did not start the product", status);
}

}  // namespace codetr

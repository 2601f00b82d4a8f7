// The product of E4M3 matrices by cuBLASLt, free of frameworks: how a shape is computed, and the launch.
//
// Formula, shapes and types: README.md in this folder.
#pragma once

#include "cublaslt.h"
#include "linear_call.h"

#include <string>

namespace codetr {

// How one kind of call is computed.
struct LinearPlan {
    cublaslt::Handle handle;
    cublaslt::Algorithm algorithm;
    size_t workspace;  // bytes
};

// Finds the plan of `call`, which findFault() has nothing against, on `device`, the current one. What cuBLASLt has chosen for a
// shape is kept. Waits for nothing and starts nothing. Returns why there is none, or an empty string.
std::string planLinearE4m3(LinearE4m3 const& call, int32_t device, LinearPlan& plan);

// Starts the computation on `stream`, with plan.workspace bytes at `workspace`; waits for nothing, and may be captured in a CUDA
// graph. Returns what is wrong, or an empty string.
std::string launchLinearE4m3(LinearE4m3 const& call, LinearPlan const& plan, void* workspace, CUstream_st* stream);

}  // namespace codetr

// Multi-scale deformable attention on the GPU: the launcher, free of frameworks.
//
// Formulas, shapes and types: README.md in this folder.
#pragma once

#include "call.h"

#include <cuda_runtime_api.h>

namespace codetr {

// Starts the computation on `stream`. Allocates nothing, waits for nothing, may be captured in a CUDA graph.
// Returns cudaErrorInvalidValue where findFault() has a reason, and whatever the launch reports otherwise.
cudaError_t launchMsDeformAttn(MsDeformAttn const& call, cudaStream_t stream);

}  // namespace codetr

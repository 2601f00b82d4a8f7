// What is called of cuBLASLt, declared here: the library is built where its header is not, and runs with the one that PyTorch
// has loaded, of CUDA 12 or 13. Plain C++. Numbers and types are those of cublasLt.h, compared with it where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // what a cudaStream_t points to

namespace codetr::cublaslt {

// Values of NVIDIA's enumerations, which travel as 32-bit integers.
constexpr int32_t kSuccess = 0;                                // cublasStatus_t
constexpr int32_t kComputeFloat32 = 68;                        // cublasComputeType_t
constexpr int32_t kNotTransposed = 0, kTransposed = 1;         // cublasOperation_t
constexpr int32_t kFloat32 = 0, kFloat16 = 2, kBFloat16 = 14;  // cudaDataType_t
constexpr int32_t kFloat8E4M3 = 28;
enum Epilogue : uint32_t { kBias = 4, kReluBias = 6, kGeluBias = 36 };
enum Attribute : int32_t {
    kTransposeA = 3,
    kTransposeB = 4,
    kEpilogue = 7,
    kBiasPointer = 8,
    kScaleOfA = 17,
    kScaleOfB = 18,
    kScaleOfD = 20,
    kFastAccumulation = 25,
    kBiasType = 26,
};
enum Preference : int32_t { kWorkspaceBytes = 1, kAlignmentOfA = 5, kAlignmentOfB = 6, kAlignmentOfC = 7, kAlignmentOfD = 8 };

struct Algorithm {
    uint64_t data[8];
};

struct Choice {  // cublasLtMatmulHeuristicResult_t
    Algorithm algorithm;
    size_t workspace;
    int32_t state;
    float waves;
    int32_t reserved[4];
};

using Handle = struct HandleOpaque*;
using Operation = struct OperationOpaque*;
using Layout = struct LayoutOpaque*;
using Wishes = struct WishesOpaque*;

// The functions, called through pointers.
struct Library {
    int32_t (*create)(Handle*);
    int32_t (*createOperation)(Operation*, int32_t compute, int32_t scale);
    int32_t (*destroyOperation)(Operation);
    int32_t (*setOperation)(Operation, int32_t attribute, void const*, size_t);
    int32_t (*createLayout)(Layout*, int32_t type, uint64_t rows, uint64_t columns, int64_t stride);
    int32_t (*destroyLayout)(Layout);
    int32_t (*createWishes)(Wishes*);
    int32_t (*destroyWishes)(Wishes);
    int32_t (*setWishes)(Wishes, int32_t attribute, void const*, size_t);
    int32_t (*choose)(Handle, Operation, Layout a, Layout b, Layout c, Layout d, Wishes, int32_t wanted, Choice*, int32_t* found);
    int32_t (*multiply)(Handle, Operation, void const* alpha, void const* a, Layout, void const* b, Layout, void const* beta, void const* c,
                        Layout, void* d, Layout, Algorithm const*, void* workspace, size_t bytes, CUstream_st*);
};

// The functions, or null where no libcublasLt can be loaded that has them all.
Library const* library();

}  // namespace codetr::cublaslt

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <type_traits>

namespace codetr::cublaslt {
static_assert(kSuccess == CUBLAS_STATUS_SUCCESS && kComputeFloat32 == CUBLAS_COMPUTE_32F);
static_assert(kNotTransposed == CUBLAS_OP_N && kTransposed == CUBLAS_OP_T);
static_assert(kFloat32 == CUDA_R_32F && kFloat16 == CUDA_R_16F && kBFloat16 == CUDA_R_16BF && kFloat8E4M3 == CUDA_R_8F_E4M3);
static_assert(+kBias == +CUBLASLT_EPILOGUE_BIAS && +kReluBias == +CUBLASLT_EPILOGUE_RELU_BIAS);
static_assert(+kGeluBias == +CUBLASLT_EPILOGUE_GELU_BIAS);
static_assert(+kTransposeA == +CUBLASLT_MATMUL_DESC_TRANSA && +kTransposeB == +CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(+kEpilogue == +CUBLASLT_MATMUL_DESC_EPILOGUE && +kBiasPointer == +CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(+kScaleOfA == +CUBLASLT_MATMUL_DESC_A_SCALE_POINTER && +kScaleOfB == +CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
static_assert(+kScaleOfD == +CUBLASLT_MATMUL_DESC_D_SCALE_POINTER && +kFastAccumulation == +CUBLASLT_MATMUL_DESC_FAST_ACCUM);
static_assert(+kBiasType == +CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE && +kWorkspaceBytes == +CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(+kAlignmentOfA == +CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(+kAlignmentOfB == +CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(+kAlignmentOfC == +CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(+kAlignmentOfD == +CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) && sizeof(Choice) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(Choice, workspace) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(Choice, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(std::is_same_v<cudaStream_t, CUstream_st*>);
static_assert(sizeof(cublasStatus_t) == 4 && sizeof(cudaDataType_t) == 4 && sizeof(cublasComputeType_t) == 4);
static_assert(sizeof(cublasLtEpilogue_t) == 4 && sizeof(cublasLtMatmulDescAttributes_t) == 4);
}  // namespace codetr::cublaslt
#endif

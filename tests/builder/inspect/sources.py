"""Sources of a package in the manner of AOTInductor's, for a CPU and a GPU."""

ON_CPU = """
extern "C"  void  cpp_fused_add_0(const uint8_t* in_ptr0,
                       const float* in_ptr1,
                       float* out_ptr0,
                       const int64_t ks0);
extern "C"  void  cpp_fused_relu_1(float* in_out_ptr0,
                       const int64_t ks0);
    constants_info_[0].name = "head_0_weight";
    constants_info_[0].dtype = cached_torch_dtype_float32;
    constants_info_[0].data_size = 512;
    constants_info_[0].shape = {16, 8};
    constants_info_[0].original_fqn = "head.0.weight";
    constants_info_[1].name = "mean";
    constants_info_[1].dtype = cached_torch_dtype_float32;
    constants_info_[1].data_size = 12;
    constants_info_[1].shape = {3};
    constants_info_[1].original_fqn = "mean";
void AOTInductorModel::run_impl(
    auto arg2_1 = std::move(inputs[0]);
    const int64_t int_array_0[] = {s6, 8L};
    AtenTensorHandle buf0_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_0, int_array_1, cached_torch_dtype_float32, cached_torch_device_type_cpu, this->device_idx_, &buf0_handle));
    RAIIAtenTensorHandle buf0(buf0_handle);
    cpp_fused_add_0((const uint8_t*)(arg2_1.data_ptr()), (const float*)(mean.data_ptr()), (float*)(buf0.data_ptr()), s6);
    // Topologically Sorted Source Nodes: [linear, view], Original ATen: [aten.view, aten.addmm, aten.view]
    const int64_t int_array_2[] = {2L*s6, 16L};
    AtenTensorHandle buf1_handle;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_2, int_array_3, cached_torch_dtype_float32, cached_torch_device_type_cpu, this->device_idx_, &buf1_handle));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(buf1, buf0, wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(head_0_weight, 2, int_array_4, int_array_5, 0L))));
    auto buf2 = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf1, 2, int_array_2, int_array_3, 0L)); buf1.reset();  // reuse
    cpp_fused_relu_1((float*)(buf2.data_ptr()), s6);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_topk(buf2, 6, 1, 1, 1, &buf3_handle, &buf4_handle));
"""  # noqa: E501  # lines as AOTInductor writes them
ON_GPU = '''
async_compile.triton("triton_poi_fused_add_0", """
def triton_poi_fused_add_0(in_ptr0, in_ptr1, out_ptr0, xnumel, XBLOCK : tl.constexpr):
""")
    constants_info_[0].name = "head_0_weight";
    constants_info_[0].dtype = cached_torch_dtype_half;
    constants_info_[0].data_size = 256;
    constants_info_[0].shape = {16, 8};
    constants_info_[0].original_fqn = "head.0.weight";
void AOTInductorModel::run_impl(
    static constexpr int64_t int_array_0[] = {4L, 8L};
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_0, int_array_1, cached_torch_dtype_half, cached_torch_device_type_cuda, this->device_idx_, &buf0_handle));
    call_triton_poi_fused_add_0(arg2_1, head_0_weight, buf0, 32L, this->device_idx_, stream, kernels, this->cubin_dir_);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf1, buf0, head_0_weight));
    aoti_torch_proxy_executor_call_function(proxy_executor, 0, 1, std::vector<int64_t>{}.data(), 2, std::vector<AtenTensorHandle>{buf1, &buf2_handle}.data());
'''  # noqa: E501

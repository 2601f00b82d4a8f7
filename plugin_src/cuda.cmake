# nvcc as CODETR_NVCC, and the folder of its headers and its static runtime as CODETR_CUDA_INCLUDE and CODETR_CUDART_STATIC.
find_program(CODETR_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin REQUIRED)
execute_process(COMMAND "${CODETR_NVCC}" --dryrun -x cu - INPUT_FILE /dev/null ERROR_VARIABLE nvcc_dryrun OUTPUT_QUIET)
string(REGEX MATCH "TOP=([^\n]+)" _ "${nvcc_dryrun}")
string(STRIP "${CMAKE_MATCH_1}" cuda_top)
get_filename_component(cuda_top "${cuda_top}" REALPATH)
find_path(CODETR_CUDA_INCLUDE cuda_runtime_api.h HINTS "${cuda_top}/include" "${cuda_top}/targets/x86_64-linux/include" NO_DEFAULT_PATH REQUIRED)
find_library(CODETR_CUDART_STATIC libcudart_static.a
             HINTS "${cuda_top}/lib64" "${cuda_top}/lib" "${cuda_top}/targets/x86_64-linux/lib" NO_DEFAULT_PATH REQUIRED)

// What tests/plugin_src/test_linear_e4m3.py asks of the headers and of the calls to cuBLASLt, without CUDA.

#include "../linear_e4m3.h"

#include <vector>

extern "C" {

char const* linearSchema() { return codetr::kLinearSchema; }

char const* describeLinearFault(codetr::LinearE4m3 const* call) { return codetr::findFault(*call); }

// Computes a call with the libcublasLt that the process has; returns what is wrong, or an empty string.
char const* runLinear(codetr::LinearE4m3 const* call, int32_t device) {
    static std::string fault;
    codetr::LinearPlan plan{};
    fault = codetr::planLinearE4m3(*call, device, plan);
    std::vector<char> workspace(plan.workspace);
    if (fault.empty()) fault = codetr::launchLinearE4m3(*call, plan, workspace.data(), nullptr);
    return fault.c_str();
}
}

// What tests/plugin_src/test_window_attn.py asks of the headers, without CUDA.

#include "../window_call.h"

#include <type_traits>

extern "C" {

// Writes for each window and position of a map the token there, its region, and its place in the bias table as row and
// column: int32 [windows, positions, 4].
void describeWindows(int32_t height, int32_t width, int32_t window, int32_t shift, int32_t* output) {
    codetr::WindowMap const map = codetr::makeWindowMap(height, width, window, shift);
    auto const describe = [&](auto side) {
        constexpr int kWindow = decltype(side)::value;
        for (int32_t i = 0; i < map.rows * map.columns; ++i) {
            codetr::WindowPlace const place = codetr::placeOf<kWindow>(map, i);
            for (int32_t position = 0; position < kWindow * kWindow; ++position) {
                *output++ = codetr::tokenAt<kWindow>(map, place, position);
                *output++ = codetr::regionAt<kWindow>(map, place, position);
                *output++ = codetr::biasRow<kWindow>(position);
                *output++ = codetr::biasColumn<kWindow>(position);
            }
        }
    };
    if (window == 7) describe(std::integral_constant<int, 7>{});
    if (window == 12) describe(std::integral_constant<int, 12>{});
}

char const* windowSchema() { return codetr::kWindowSchema; }

char const* describeWindowFault(codetr::WindowAttn const* call) { return codetr::findFault(*call); }
}

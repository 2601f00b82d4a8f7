// Which of TensorRT's plugin interfaces the library's plugins implement, by the headers it is compiled with.
#pragma once

#include <NvInferRuntime.h>

#if NV_TENSORRT_MAJOR >= 10
#define CODETR_PLUGIN_V3
#define CODETR_GET_CREATORS getCreators  // what IPluginRegistry::loadLibrary looks for
#include "tensorrt_plugin_v3.h"
namespace codetr {
using CreatorInterface = nvinfer1::IPluginCreatorInterface;
}
#else
#define CODETR_PLUGIN_V2
#define CODETR_GET_CREATORS getPluginCreators
#include "tensorrt_plugin_v2.h"
namespace codetr {
using CreatorInterface = nvinfer1::IPluginCreator;
}
#endif

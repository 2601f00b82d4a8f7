// A TensorRT plan of 8.5 to 11, through one CUDA graph for each batch size.
//
// TensorRT is loaded at run time, so that the program is built wherever its headers are and starts where it is not.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <fstream>
#include <iostream>
#include <numeric>

#include "checks.hpp"
#include "engine.hpp"

namespace codetr::run {

namespace {

#ifdef NV_TENSORRT_MAJOR
constexpr int kMajor = NV_TENSORRT_MAJOR;
#else
constexpr int kMajor = TRT_MAJOR_ENTERPRISE;
#endif

constexpr char const* kOutputs[] = {"boxes", "scores", "labels"};

void check(cudaError_t code, char const* what) {
    if (code != cudaSuccess) {
        throw Error(std::string(what) + " failed: " + cudaGetErrorString(code));
    }
}

class Log : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* text) noexcept override {
        if (severity <= Severity::kERROR) {
            std::cerr << "TensorRT: " << text << "\n";
            if (first.empty()) {
                first = text;
            }
        }
    }
    std::string first;  // the error that the others follow
};

std::size_t bytesOf(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kUINT8: return 1;
        default: return 8;  // of no input or result of a detector; the widest, for what is only marked
    }
}

class Buffer {
public:
    explicit Buffer(std::size_t size) { check(cudaMalloc(&data_, size), "allocating GPU memory"); }
    ~Buffer() { cudaFree(data_); }
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;
    void* get() const { return data_; }

private:
    void* data_ = nullptr;
};

struct Tensor {
    std::string name;
    std::size_t imageBytes;  // of one image's share
    bool isInput;
    std::unique_ptr<Buffer> memory;
};

class Plan : public Engine {
public:
    Plan(EngineFiles const& files, Manifest const& manifest) : manifest_(manifest) {
        int devices = 0;
        if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
            throw Error("a plan needs an NVIDIA GPU and its driver");
        }
        load(files);
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
        allocate();
    }

    ~Plan() override {
        forget();
        cudaStreamDestroy(stream_);
    }

    Candidates run(std::uint8_t const* images, std::int32_t const* sizes, int batch) override {
        void const* const given[] = {images, sizes};
        for (Tensor const& tensor : tensors_) {
            if (tensor.isInput) {
                void const* const source = given[tensor.name == "images" ? 0 : 1];
                check(cudaMemcpyAsync(tensor.memory->get(), source, tensor.imageBytes * static_cast<std::size_t>(batch),
                                      cudaMemcpyHostToDevice, stream_),
                      "copying to the GPU");
            }
        }
        if (graph_ == nullptr || batch != batch_) {
            capture(batch);
        }
        check(cudaGraphLaunch(graph_, stream_), "launching the plan");
        Candidates result;
        result.count = count_;
        std::size_t const all = static_cast<std::size_t>(batch) * count_;
        result.boxes.resize(4 * all);
        result.scores.resize(all);
        result.labels.resize(all);
        void* const targets[] = {result.boxes.data(), result.scores.data(), result.labels.data()};
        for (std::size_t i = 0; i < 3; ++i) {
            Tensor const& tensor = named(kOutputs[i]);
            check(cudaMemcpyAsync(targets[i], tensor.memory->get(), tensor.imageBytes * static_cast<std::size_t>(batch),
                                  cudaMemcpyDeviceToHost, stream_),
                  "copying from the GPU");
        }
        check(cudaStreamSynchronize(stream_), "running the plan");
        return result;
    }

    std::vector<double> repeat(int iterations) override {
        cudaEvent_t begin = nullptr, end = nullptr;
        check(cudaEventCreate(&begin), "creating an event");
        check(cudaEventCreate(&end), "creating an event");
        std::vector<double> times;
        for (int i = 0; i < iterations; ++i) {
            check(cudaEventRecord(begin, stream_), "recording an event");
            check(cudaGraphLaunch(graph_, stream_), "launching the plan");
            check(cudaEventRecord(end, stream_), "recording an event");
            check(cudaEventSynchronize(end), "running the plan");
            float milliseconds = 0.0f;
            check(cudaEventElapsedTime(&milliseconds, begin, end), "reading an event");
            times.push_back(static_cast<double>(milliseconds));
        }
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
        return times;
    }

private:
    void load(EngineFiles const& files) {
        std::filesystem::path const library =
            files.tensorrt.empty() ? std::filesystem::path("libnvinfer.so." + std::to_string(kMajor)) : files.tensorrt;
        using Create = void* (*)(void*, int);
        void* const loaded = loadLibrary(library);
        auto const create = reinterpret_cast<Create>(dlsym(loaded, "createInferRuntime_INTERNAL"));
        auto const version = reinterpret_cast<int (*)()>(dlsym(loaded, "getInferLibVersion"));
        if (create == nullptr || version == nullptr) {
            throw Error(library.string() + " is no TensorRT runtime");
        }
        Machine machine;
        machine.release = tensorrtRelease(version());
        checkMachine(manifest_, machine);
        std::filesystem::path const plugin = files.folder / "libcodetr_plugin.so", path = files.folder / "model.plan";
        if (std::filesystem::exists(plugin)) {
            loadLibrary(plugin);
        }
        std::ifstream file(path, std::ios::binary);
        std::string const bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        if (bytes.empty()) {
            throw Error("cannot read " + path.string());
        }
        runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&log_, NV_TENSORRT_VERSION)));
        if (!runtime_) {
            throw Error(library.string() + " is another release than the headers of this program: " + log_.first);
        }
        engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
        if (!engine_) {
            throw Error("TensorRT cannot load " + path.string() + ": " + log_.first);
        }
        context_.reset(engine_->createExecutionContext());
        if (!context_) {
            throw Error(path.string() + " does not fit into the GPU's memory: " + log_.first);
        }
    }

    void allocate() {
        for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
            char const* const name = engine_->getIOTensorName(i);
            nvinfer1::Dims const shape = engine_->getTensorShape(name);
            std::size_t elements = 1;
            for (int k = 1; k < shape.nbDims; ++k) {
                elements *= static_cast<std::size_t>(shape.d[k]);
            }
            Tensor tensor{name, elements * bytesOf(engine_->getTensorDataType(name)),
                          engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT, nullptr};
            tensor.memory = std::make_unique<Buffer>(tensor.imageBytes * static_cast<std::size_t>(manifest_.maxBatchSize));
            tensors_.push_back(std::move(tensor));
        }
        for (char const* const name : kOutputs) {
            named(name);
        }
        count_ = named("scores").imageBytes / sizeof(float);
        std::size_t const pixels = static_cast<std::size_t>(manifest_.size.height) * static_cast<std::size_t>(manifest_.size.width) * 3;
        if (named("images").imageBytes != pixels || named("boxes").imageBytes != 4 * named("scores").imageBytes ||
            named("labels").imageBytes != named("scores").imageBytes) {
            throw Error("the plan's inputs or outputs are not those of its manifest");
        }
    }

    Tensor const& named(std::string const& name) const {
        for (Tensor const& tensor : tensors_) {
            if (tensor.name == name) {
                return tensor;
            }
        }
        throw Error("the plan has no " + name);
    }

    void forget() {
        if (graph_ != nullptr) {
            cudaGraphExecDestroy(graph_);
        }
        graph_ = nullptr;
    }

    // A graph is void as soon as its context has other shapes: it may read what the context keeps of them.
    void capture(int batch) {
        forget();
        for (Tensor const& tensor : tensors_) {
            if (tensor.isInput) {
                nvinfer1::Dims shape = engine_->getTensorShape(tensor.name.c_str());
                shape.d[0] = batch;
                if (!context_->setInputShape(tensor.name.c_str(), shape)) {
                    throw Error("the plan takes no batch of " + std::to_string(batch));
                }
            }
            context_->setTensorAddress(tensor.name.c_str(), tensor.memory->get());
        }
        enqueue();  // what a context does at the first run with new shapes cannot be captured
        check(cudaStreamSynchronize(stream_), "running the plan");
        cudaGraph_t graph = nullptr;
        check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing a graph");
        enqueue();
        check(cudaStreamEndCapture(stream_, &graph), "capturing a graph");
        check(cudaGraphInstantiateWithFlags(&graph_, graph, 0), "instantiating a graph");
        cudaGraphDestroy(graph);
        batch_ = batch;
    }

    void enqueue() {
        if (!context_->enqueueV3(stream_)) {
            throw Error("the plan failed to run: " + log_.first);
        }
    }

    Manifest manifest_;
    Log log_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
    std::vector<Tensor> tensors_;
    std::size_t count_ = 0;
    cudaGraphExec_t graph_ = nullptr;  // of batches of `batch_`
    int batch_ = 0;
};

}  // namespace

std::unique_ptr<Engine> loadPlan(EngineFiles const& files, Manifest const& manifest) { return std::make_unique<Plan>(files, manifest); }

}  // namespace codetr::run

// An AOTInductor package, by the loader of libtorch. On a GPU not yet run.
#include <ATen/Context.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <chrono>

#include "checks.hpp"
#include "engine.hpp"

namespace codetr::run {

namespace {

class Package : public Engine {
public:
    Package(EngineFiles const& files, Manifest const& manifest)
        : manifest_(manifest), device_(manifest.device == "cuda" ? torch::kCUDA : torch::kCPU) {
        if (device_.is_cuda() && !torch::cuda::is_available()) {
            throw Error("the package was built for a GPU, and libtorch finds none");
        }
        Machine machine;
        machine.release = TORCH_VERSION;
        checkMachine(manifest, machine);
        for (auto const& entry : std::filesystem::directory_iterator(files.folder)) {
            if (entry.path().extension() == ".so") {
                loadLibrary(entry.path());  // of operators
            }
        }
        std::filesystem::path const path = files.folder / "model.pt2";
        try {
            loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path.string(), "model", true);
        } catch (std::exception const& error) {
            std::string const reason = error.what();
            throw Error("libtorch cannot load " + path.string() + ": " + reason.substr(0, reason.find('\n')));
        }
        // As the server has it: what is float32 in a package is computed without TF32, unless the package allows it.
        auto const metadata = loader_->get_metadata();
        auto const tf32 = metadata.find("codetr_tf32");
        bool const allowed = tf32 != metadata.end() && tf32->second == "yes";
        at::globalContext().setAllowTF32CuBLAS(allowed);
        at::globalContext().setAllowTF32CuDNN(allowed);
    }

    Candidates run(std::uint8_t const* images, std::int32_t const* sizes, int batch) override {
        torch::InferenceMode guard;
        inputs_.clear();
        inputs_.push_back(
            torch::from_blob(const_cast<std::uint8_t*>(images), {batch, manifest_.size.height, manifest_.size.width, 3}, torch::kUInt8)
                .to(device_, false, true));
        if (manifest_.readsSizes) {
            inputs_.push_back(torch::from_blob(const_cast<std::int32_t*>(sizes), {batch, 2}, torch::kInt32).to(device_, false, true));
        }
        std::vector<torch::Tensor> outputs = call();
        Candidates result;
        result.count = static_cast<std::size_t>(outputs.at(1).size(1));
        result.boxes = copied<float>(outputs.at(0), torch::kFloat32);
        result.scores = copied<float>(outputs.at(1), torch::kFloat32);
        result.labels = copied<std::int32_t>(outputs.at(2), torch::kInt32);
        return result;
    }

    std::vector<double> repeat(int iterations) override {
        torch::InferenceMode guard;
        std::vector<double> times;
        for (int i = 0; i < iterations; ++i) {
            auto const begin = std::chrono::steady_clock::now();
            call();
            if (device_.is_cuda()) {
                torch::cuda::synchronize();
            }
            times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
        }
        return times;
    }

private:
    std::vector<torch::Tensor> call() {
        try {
            return loader_->run(inputs_);
        } catch (std::exception const& error) {
            std::string const reason = error.what();
            throw Error("the package failed to run: " + reason.substr(0, reason.find('\n')));
        }
    }

    template <typename T>
    static std::vector<T> copied(torch::Tensor const& tensor, torch::Dtype type) {
        torch::Tensor const host = tensor.to(torch::kCPU, type).contiguous();
        return {host.data_ptr<T>(), host.data_ptr<T>() + host.numel()};
    }

    Manifest manifest_;
    torch::Device device_;
    std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
    std::vector<torch::Tensor> inputs_;
};

}  // namespace

std::unique_ptr<Engine> loadPackage(EngineFiles const& files, Manifest const& manifest) {
    return std::make_unique<Package>(files, manifest);
}

}  // namespace codetr::run

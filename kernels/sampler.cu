// A step of a sampler: guidance, the sampler's sum, fresh noise, and what the denoiser is to see next, in one pass.
//
//   guided = w.uncond * uncond + w.cond * cond                                      or cond alone
//   kept   = w.kept_sample * sample + w.kept_output * guided                        remembered for later steps
//   y      = w.sample * sample + w.recalled[0] * kept + w.recalled[k] * recalled[k - 1] + w.noise * noise
//   input  = w.input_scale * y                                                      once, or twice with guidance
//
// The weights are rows of a table; each image has its own row. Products and sums are rounded one by one, terms of weight 0
// left out, as separate passes would.

#include "common.cuh"

constexpr int RECALLED = 5;  // kept results that a step reads, its own included

struct StepWeights {
    float uncond, cond;
    float kept_sample, kept_output;
    float sample, recalled[RECALLED], noise;
    float input_scale;
};

struct GuidedStepDims {
    unsigned long long len;  // elements of an image
    unsigned guided;         // whether there is a prediction without the prompt, in front of that with it
    unsigned recalled;       // tensors that are there
    unsigned rows;           // of the table
    unsigned reserved;
};

// A sum of weighted terms.
struct Terms {
    float sum = -0.0f;  // what adding to changes nothing, not even -0
    bool any = false;

    __device__ void add(float weight, float x) {
        if (weight == 0.0f) return;
        sum = __fadd_rn(sum, __fmul_rn(weight, x));
        any = true;
    }

    __device__ float value() const { return any ? sum : 0.0f; }
};

// y, kept, sample, noise, recalled [images, len]; prediction and input [images, 1 or 2, len]; table [rows, 12];
// rows [images]. grid (any, images)
template <typename T>
__device__ void guided_step(
    float* y, float* kept, float* input, const T* prediction, const float* sample, Pointers<const float, 1> noise,
    Pointers<const float, RECALLED - 1> recalled, const float* table, const unsigned* rows, const GuidedStepDims& d) {
    static_assert(sizeof(StepWeights) == 12 * sizeof(float), "a row");
    const unsigned row = min(rows[blockIdx.y], d.rows - 1);
    const StepWeights w = reinterpret_cast<const StepWeights*>(table)[row];
    const size_t image = blockIdx.y * d.len, first = d.guided ? 2 * image : image;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < d.len; i += size_t(gridDim.x) * blockDim.x) {
        float guided = to_float(prediction[first + i]);
        if (d.guided) {
            const float cond = to_float(prediction[first + d.len + i]);
            guided = __fadd_rn(__fmul_rn(w.uncond, guided), __fmul_rn(w.cond, cond));
        }
        const float x = sample[image + i];
        float remembered = guided;
        if (w.kept_sample != 0.0f || w.kept_output != 1.0f) {
            Terms mix;
            mix.add(w.kept_sample, x);
            mix.add(w.kept_output, guided);
            remembered = mix.value();
        }
        kept[image + i] = remembered;
        Terms next;
        next.add(w.sample, x);
        next.add(w.recalled[0], remembered);
#pragma unroll
        for (int k = 1; k < RECALLED; k++) {
            if (k <= d.recalled) next.add(w.recalled[k], recalled.at[k - 1][image + i]);
        }
        if (noise.at[0]) next.add(w.noise, noise.at[0][image + i]);
        y[image + i] = next.value();
        const float seen = w.input_scale * next.value();
        input[first + i] = seen;
        if (d.guided) input[first + d.len + i] = seen;
    }
}
FOR_EACH_FLOAT(
    guided_step,
    (float* y, float* kept, float* input, const T* prediction, const float* sample, Pointers<const float, 1> noise,
     Pointers<const float, RECALLED - 1> recalled, const float* table, const unsigned* rows, GuidedStepDims d),
    (y, kept, input, prediction, sample, noise, recalled, table, rows, d))

"""The ONNX operators that an artifact's graphs may use: those of the default domain that only compute tensors.

None has a graph inside (`If`, `Loop`, `Scan`), keeps state or draws numbers (`Random*`, `Dropout`), makes sequences,
optionals or texts, decodes a format (`ImageDecoder`, `TfIdfVectorizer`), or has a size that only its data decide
(`NonZero`, `Compress`, `Unique`). `Resize` is left out too: its scales are fractions that nobody can bound beforehand,
and the exporter does not use it.
"""

from __future__ import annotations

from collections.abc import Mapping

_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor
    Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min
    Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt
    Sub Sum Tan Tanh ThresholdedRelu Where Xor
"""
_REDUCTIONS = """
    ArgMax ArgMin CumSum Hardmax LogSoftmax ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK
"""
_PRODUCTS = "Conv ConvTranspose Einsum Gemm MatMul"
_POOLINGS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxUnpool"
_NORMALISATIONS = """
    BatchNormalization InstanceNormalization LayerNormalization LpNormalization LRN MeanVarianceNormalization
"""
_SHAPES = """
    Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND OneHot Pad Range Reshape
    ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
"""

OPERATORS: frozenset[str] = frozenset(
    " ".join((_ELEMENTWISE, _REDUCTIONS, _PRODUCTS, _POOLINGS, _NORMALISATIONS, _SHAPES)).split()
)

# What onnxruntime-training's gradient graphs use beside these, by domain. All compute tensors from tensors, or write
# over one: gradients, sums of gradients, optimisers, and forms that its own passes make of plain operators.
_GRADIENTS = """
    BroadcastGradientArgs ConcatTraining ConvGrad DivGrad FastGeluGrad GatherElementsGrad GatherGrad GatherNDGrad
    GeluGrad InPlaceAccumulatorV2 LayerNormalizationGrad LeakyReluGrad LogSoftmaxGrad_13 QuickGeluGrad
    ReduceSumTraining ReluGrad SigmoidGrad SliceGrad SoftmaxGrad_13 SplitTraining TanhGrad
"""
_UPDATES_AND_FORMS = "AdamWOptimizer BiasGelu FastGelu FusedMatMul Gelu QuickGelu SGDOptimizerV2 Scale"
TRAINING_OPERATORS: Mapping[str, frozenset[str]] = {
    "": frozenset({"MaxPoolGrad"}),
    "com.microsoft": frozenset(" ".join((_GRADIENTS, _UPDATES_AND_FORMS)).split()),
}

# Kernels of these take the size of what they make from the file, and end the process where it does not say it.
DESCRIBED_OPERATORS = frozenset({"MaxPoolGrad"})

# Inputs whose numbers decide how large an output is.
SIZING_INPUTS: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "GatherElementsGrad": (1,),
    "GatherGrad": (0,),
    "GatherNDGrad": (0,),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "SliceGrad": (1,),
    "Tile": (1,),
}
# Of most of these, the input is a shape, or is multiplied with one: what counts is the product of its numbers.
SHAPE_OPERATORS = frozenset(SIZING_INPUTS) - {"OneHot", "Pad", "Range"}
# Outputs of these follow from the shape of what goes in, whatever its numbers.
SHAPE_READERS = frozenset({"Shape", "Size"})

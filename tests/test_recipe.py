"""Which tensors a recipe quantizes and how, and that a recipe that makes no sense says so where it stands."""

import json

import pytest

from mzstore.dtypes import DTYPES
from mzstore.recipe import DEFAULTS, MIN_SIZE, QUANTIZERS, Recipe, Rule
from mzstore.tensors import TensorSpec

LARGE = (512, 1024)


def spec(name: str = "w", shape: tuple[int, ...] = LARGE, dtype: str = "bfloat16") -> TensorSpec:
    return TensorSpec(name, DTYPES[dtype], shape)


def quantized(recipe: Recipe, specs: list[TensorSpec]) -> set[str]:
    return {one.name for one in specs if recipe.rule_for(one) is not None}


def message(make, *args, **keys) -> str:
    with pytest.raises(ValueError, match=r"\w") as refused:
        make(*args, **keys)
    return str(refused.value)


def toml(tables: list[dict]) -> str:
    """JSON's strings, numbers, booleans and lists are TOML's as well."""
    return "".join("[[rule]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in t.items()) for t in tables)


# What is asked for, and what a tensor's attributes then say.
GOOD = [
    ({"bits": 4}, {"quantizer": "uniform", "bits": 4.0}),
    ({"bits": 3.5, "levels": 16}, {"quantizer": "uniform", "bits": 3.5, "levels": 16}),
    ({"nmse": 1e-3}, {"quantizer": "uniform", "nmse": 1e-3}),
    ({"snr_db": 25}, {"quantizer": "uniform", "snr_db": 25.0}),
    ({"max_error": 0.01}, {"quantizer": "uniform", "max_error": 0.01}),
    ({"step": 0.01, "lagrangian": 0}, {"quantizer": "uniform", "step": 0.01, "lagrangian": 0.0}),
    (
        {"quantizer": "symmetric", "bits": 8, "scales": "row"},
        {"quantizer": "symmetric", "bits": 8, "scales": "row", "scale_dtype": "float32"},
    ),
    (
        {"quantizer": "symmetric", "bits": 8, "low": -1, "high": 1},
        {"quantizer": "symmetric", "bits": 8, "scales": "tensor", "scale_dtype": "float32", "low": -1.0, "high": 1.0},
    ),
    (
        {"quantizer": "affine", "bits": 4.0},
        {"quantizer": "affine", "bits": 4, "scales": "group", "group": 128, "scale_dtype": "float16"},
    ),
    (
        {"quantizer": "affine", "bits": 1, "group": 64, "scale_dtype": "bfloat16", "search": True},
        {"quantizer": "affine", "bits": 1, "scales": "group", "group": 64, "scale_dtype": "bfloat16", "search": True},
    ),
    (
        {"quantizer": "affine", "bits": 4, "tile": [64, 128]},
        {"quantizer": "affine", "bits": 4, "scales": "tile", "tile": [64, 128], "scale_dtype": "float16"},
    ),
    (
        {"quantizer": "affine", "bits": 4, "scales": "tile"},
        {"quantizer": "affine", "bits": 4, "scales": "tile", "tile": [128, 128], "scale_dtype": "float16"},
    ),
    ({"quantizer": "codebook", "bits": 3}, {"quantizer": "codebook", "bits": 3.0, "levels": 8, "codebook": "kmeans", "dimension": 1}),
    (
        {"quantizer": "codebook", "levels": 1000, "dimension": 4},
        {"quantizer": "codebook", "levels": 1000, "codebook": "kmeans", "dimension": 4},
    ),
    (
        {"quantizer": "codebook", "bits": 1.5, "dimension": 8},
        {"quantizer": "codebook", "bits": 1.5, "levels": 4096, "codebook": "kmeans", "dimension": 8},
    ),
    *(
        (
            keys,
            {
                "quantizer": "codebook", "levels": 16, "scales": "group", "group": 64, "scale_dtype": "float16", "codebook": "nf4", "dimension": 1
            },
        )
        for keys in ({"quantizer": "nf4"}, {"quantizer": "codebook", "codebook": "nf4"})
    ),
    (
        {"quantizer": "fp4", "bits": 4, "scales": "row"},
        {"quantizer": "codebook", "bits": 4.0, "levels": 16, "scales": "row", "scale_dtype": "float32", "codebook": "fp4", "dimension": 1},
    ),
    ({"quantizer": "float8"}, {"quantizer": "float8", "scales": "row", "scale_dtype": "float32", "format": "e4m3fn"}),
    (
        {"quantizer": "float8", "format": "e5m2", "group": 32},
        {"quantizer": "float8", "scales": "group", "group": 32, "scale_dtype": "float16", "format": "e5m2"},
    ),
    ({"quantizer": "mxfp8"}, {"quantizer": "mxfp8", "format": "e4m3fn"}),
    ({"quantizer": "mxfp4", "bits": 4}, {"quantizer": "mxfp4", "bits": 4.0}),
    ({"quantizer": "nvfp4", "search": True}, {"quantizer": "nvfp4", "search": True}),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "asked"), GOOD, ids=lambda value: str(value))
def test_what_is_asked(keys, asked):
    rule = Recipe(**keys).rule_for(spec())
    assert rule is not None
    assert rule.asked == {"encoding": "quantized"} | asked
    assert json.loads(json.dumps(rule.asked)) == rule.asked
    assert Rule(**rule.asked | ({"levels": None} if "bits" in asked and rule.codebook == "kmeans" else {})) == rule


OTHERS = [
    ({"sparsity": 0.9}, {"encoding": "sparse", "sparsity": 0.9}),
    ({"top": 0.1, "block": "4x4", "scope": "global"}, {"encoding": "sparse", "top": 0.1, "block": "4x4", "scope": "global"}),
    ({"pattern": "2:4", "bits": 4}, {"encoding": "sparse", "pattern": "2:4", "quantizer": "uniform", "bits": 4.0}),
    (
        {"threshold": 0.01, "quantizer": "nf4"},
        {
            "encoding": "sparse", "threshold": 0.01, "quantizer": "codebook", "levels": 16, "codebook": "nf4", "dimension": 1,
            "scales": "group", "group": 64, "scale_dtype": "float16",
        },
    ),
    ({"rank": 64, "factor_dtype": "float16"}, {"encoding": "lowrank", "rank": 64, "factor_dtype": "float16"}),
    ({"energy": 0.95}, {"encoding": "lowrank", "energy": 0.95}),
    ({"encoding": "lowrank", "nmse": 0.1, "bits": 6}, {"encoding": "lowrank", "nmse": 0.1, "quantizer": "uniform", "bits": 6.0}),
    (
        {"parts": ["quantized bits=3", "sparse top=0.5%"], "rounds": 3},
        {
            "encoding": "parts", "rounds": 3,
            "parts": [{"encoding": "quantized", "quantizer": "uniform", "bits": 3.0}, {"encoding": "sparse", "top": 0.005}],
        },
    ),
    (
        {"parts": [{"rank": 8, "bits": 8}, {"encoding": "quantized", "nmse": 0.01}]},
        {
            "encoding": "parts",
            "parts": [
                {"encoding": "lowrank", "rank": 8, "quantizer": "uniform", "bits": 8.0},
                {"encoding": "quantized", "quantizer": "uniform", "nmse": 0.01},
            ],
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "asked"), OTHERS, ids=str)
def test_what_is_asked_of_other_encodings(keys, asked):
    rule = Recipe(**keys).rule_for(spec())
    assert rule is not None
    assert rule.asked == asked
    assert json.loads(json.dumps(rule.asked)) == rule.asked
    assert Rule(**rule.asked).asked == asked
    text = "[[rule]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items() if k != "parts")
    if "parts" in keys and isinstance(keys["parts"][0], str):
        text += f"parts = {json.dumps(keys['parts'])}\n"
    for part in keys.get("parts", ()):
        if isinstance(part, dict):
            text += "[[rule.parts]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in part.items())
    assert Recipe.parse(text) == Recipe(**keys)


@pytest.mark.parametrize(
    ("line", "table"),
    [
        ("quantized bits=3", {"encoding": "quantized", "bits": 3}),
        ("quantized quantizer=affine bits=4 tile=[16,32]", {"encoding": "quantized", "quantizer": "affine", "bits": 4, "tile": [16, 32]}),
        ("sparse top=0.5%", {"encoding": "sparse", "top": 0.005}),
        ("sparse  sparsity=99% block=1x*", {"encoding": "sparse", "sparsity": 0.99, "block": "1x*"}),
        ("sparse pattern=2:4 bits=5", {"encoding": "sparse", "pattern": "2:4", "bits": 5}),
        ("lowrank energy=95% factor_dtype=bfloat16", {"encoding": "lowrank", "energy": 0.95, "factor_dtype": "bfloat16"}),
        ("lowrank rank=8 quantizer=symmetric bits=8 scales=row search=true", {"encoding": "lowrank", "rank": 8, "quantizer": "symmetric", "bits": 8, "scales": "row", "search": True}),
    ],
)  # fmt: skip
def test_a_part_in_one_line(line, table):
    assert Rule(parts=[line]) == Rule(parts=[table]) == Rule(parts=[Rule(**table)])


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"sparsity": 0.9, "top": 0.1}, 'encoding = "sparse" takes one of sparsity, top, threshold, pattern, not sparsity and top'),
        ({"encoding": "sparse"}, "takes one of sparsity, top, threshold, pattern, not none of them"),
        ({"sparsity": 1}, "sparsity = 1: a number above 0 and below 1 will do"),
        ({"top": "10%"}, "top = '10%': a number above 0 and below 1 will do"),
        ({"pattern": "4:2"}, "pattern = '4:2': \"2:4\", or another number out of at most 8"),
        ({"pattern": "2:4", "block": "4x4"}, "a pattern is of single values"),
        ({"top": 0.1, "block": "*x*"}, "block = '*x*' is the whole tensor"),
        ({"top": 0.1, "block": "4"}, "block = '4': rows and columns will do"),
        ({"threshold": 0.1, "scope": "global"}, 'scope = "global" takes sparsity or top, not threshold'),
        ({"rank": 8, "energy": 0.5}, 'encoding = "lowrank" takes one of rank, energy, nmse, not rank and energy'),
        ({"rank": 8, "bits": 4, "factor_dtype": "float16"}, "factors that are quantized have no factor_dtype"),
        ({"rank": 8, "top": 0.1}, 'encoding = "sparse" takes no rank: leave one of the two out, or take parts'),
        ({"encoding": "quantized", "bits": 4, "top": 0.1}, 'takes no top: leave it out, or take encoding = "sparse"'),
        ({"sparsity": 0.9, "bits": 40}, "bits = 40: a number above 0 and up to 16"),
        ({"sparsity": 0.9, "quantizer": "affine"}, 'quantizer = "affine" takes bits'),
        ({"encoding": "parts"}, "takes parts, like"),
        ({"parts": "quantized bits=3"}, "parts = 'quantized bits=3': a list will do"),
        ({"parts": []}, "0 parts, where 1 to 4 will do"),
        ({"parts": [""]}, "part '': encoding = ''"),
        ({"parts": ["quantised bits=3"]}, "encoding = 'quantised': did you mean 'quantized'?"),
        ({"parts": ["quantized bits"]}, "'bits' is not key=value"),
        ({"parts": ["quantized bits=3 bits=4"]}, "bits is said twice"),
        ({"parts": ["quantized bitz=3"]}, "unknown key 'bitz': did you mean 'bits'?"),
        ({"parts": ["sparse top=half"]}, "top = 'half': a number above 0"),
        ({"parts": ["sparse top=ten%"]}, "top = 'ten%': a number above 0"),
        ({"parts": ["quantized bits=3", "quantized bits=2"]}, "two parts that are quantized"),
        ({"parts": ["sparse top=1% scope=global"]}, 'scope = "global" is for a rule of its own'),
        ({"parts": ["lossless"]}, "lossless is no part"),
        ({"parts": [3]}, "part 3: a string like"),
        ({"parts": [{"encoding": "sparse", "top": 0.1, "name": "w"}]}, "unknown key 'name'"),
        ({"parts": [Rule(top=0.1, name="w")]}, "has conditions or on_error"),
        ({"parts": [Rule(top=0.1, on_error="lossless")]}, "has conditions or on_error"),
        ({"parts": [Rule(parts=["sparse top=1%"])]}, "parts is no part"),
        ({"parts": ["sparse top=1%"], "bits": 3}, 'encoding = "parts" takes no bits'),
        ({"parts": ["sparse top=1%"], "rounds": 0}, "rounds = 0: an integer from 1"),
    ],
    ids=str,
)  # fmt: skip
def test_other_encodings_that_make_no_sense(keys, says):
    assert says in message(Rule, **keys)


def test_every_quantizer_has_a_row_in_the_table():
    assert {keys.get("quantizer", "uniform") for keys, _ in GOOD} == QUANTIZERS.keys()


BAD = [
    ({"bitz": 4}, "unknown key 'bitz': did you mean 'bits'?"),
    ({"group_size": 128}, "unknown key 'group_size': did you mean 'group'?"),
    ({"mse": 1e-3}, "unknown key 'mse': did you mean 'nmse'?"),
    ({"quux": 1}, "unknown key 'quux': one of name, dtype, "),
    ({"quantizer": "symetric", "bits": 4}, "quantizer = 'symetric': did you mean 'symmetric'?"),
    ({"quantizer": 4}, "quantizer = 4: one of uniform, symmetric, "),
    ({"quantizer": "affine", "bits": 4, "scales": "rows"}, "scales = 'rows': did you mean 'row'?"),
    ({"bits": 4, "scale_dtype": "float64"}, "scale_dtype = 'float64': did you mean"),
    ({"dtype": "bfloat", "bits": 4}, "dtype = 'bfloat': did you mean 'bfloat16'?"),
    ({"bits": "4"}, "bits = '4': a number above 0 and up to 16 will do"),
    ({"bits": True}, "bits = True: a number"),
    ({"bits": 0}, "bits = 0: a number"),
    ({"bits": 17}, "bits = 17: a number"),
    ({"bits": float("nan")}, "bits = nan: a number"),
    ({"nmse": 1}, "nmse = 1: a number above 0 and below 1"),
    ({"snr_db": -3}, "snr_db = -3: a number above 0"),
    ({"max_error": 10**400}, "a number above 0 that float32 holds"),
    ({"step": 1e-60}, "step = 1e-60: a number from 1e-36 to 1e36 will do"),
    ({"bits": 4, "levels": 1}, "levels = 1: an integer from 2 to 65536"),
    ({"bits": 4, "levels": 16.0}, "levels = 16.0: an integer"),
    ({"bits": 4, "name": []}, "name = []: no tensor matches"),
    ({"bits": 4, "name": ["a", 5]}, "name = 5: a name or glob"),
    ({"bits": 4, "name": 5}, "name = 5: a name or glob"),
    ({"bits": 4, "ndim": 33}, "ndim = 33: an integer from 0 to 32"),
    ({"bits": 4, "shape": [-1, 4]}, 'shape = [-1, 4]: a list with the length of each axis will do, "*" for any'),
    ({"bits": 4, "shape": 384}, "shape = 384: a list"),
    ({"bits": 4, "min_size": 5, "max_size": 4}, "min_size = 5 is above max_size = 4: no tensor matches"),
    ({"bits": 4, "on_error": "ignore"}, "on_error = 'ignore': one of refuse, lossless"),
    ({"bits": 4, "on_error": None}, "on_error = None: one of refuse, lossless"),
    ({"name": "*"}, 'it does not say what to do: encoding = "lossless", or a target like bits = 4'),
    ({"encoding": "lossless", "bits": 4}, 'encoding = "lossless" takes no bits'),
    ({"encoding": "quantized"}, "takes one of bits, nmse, snr_db, max_error and step, not none of them"),
    ({"bits": 4, "nmse": 1e-3}, "and step, not bits and nmse"),
    ({"bits": 4, "step": 1e-3}, "and step, not bits and step"),
    ({"bits": 4, "group": 128}, "takes no group: it has one step for the tensor; symmetric and affine take scales"),
    ({"bits": 4, "dimension": 2}, "takes no dimension: leave it out, or take codebook or nf4 or fp4"),
    ({"max_error": 0.1, "lagrangian": 0.1}, "max_error rounds to the nearest: leave lagrangian out"),
    ({"quantizer": "symmetric", "nmse": 0.1}, 'takes no nmse: its width is fixed; quantizer = "uniform" aims at targets'),
    ({"quantizer": "symmetric"}, "takes bits, an integer from 2 to 16: it is not given"),
    ({"quantizer": "symmetric", "bits": 1}, "takes bits, an integer from 2 to 16: not bits = 1"),
    ({"quantizer": "affine", "bits": 3.5}, "takes bits, an integer from 1 to 16: not bits = 3.5"),
    ({"quantizer": "affine", "bits": 4, "scales": "row", "group": 64}, 'scales = "row" takes no group'),
    ({"quantizer": "affine", "bits": 4, "scales": "tensor", "tile": [8, 8]}, 'scales = "tensor" takes no tile'),
    ({"quantizer": "affine", "bits": 4, "group": 64, "tile": [8, 8]}, "group = 64 and tile = [8, 8]: leave one of them out"),
    ({"quantizer": "affine", "bits": 4, "tile": [8]}, "tile = [8]: a list of two lengths"),
    ({"quantizer": "affine", "bits": 4, "group": 0}, "group = 0: an integer from 1"),
    ({"quantizer": "affine", "bits": 4, "low": 0}, "low and high are given together"),
    ({"quantizer": "affine", "bits": 4, "low": 1, "high": 1}, "low = 1 is not below high = 1"),
    ({"quantizer": "symmetric", "bits": 4, "low": 0, "high": 1}, "give low = -high"),
    ({"quantizer": "affine", "bits": 4, "low": 0, "high": 1, "group": 32}, "low and high are one range for the tensor"),
    ({"quantizer": "affine", "bits": 4, "low": 0, "high": 1, "search": True}, "low and high are not searched"),
    ({"quantizer": "affine", "bits": 4, "search": 1}, "search = 1: true or false will do"),
    ({"quantizer": "codebook"}, 'codebook = "kmeans" takes one of bits and levels'),
    ({"quantizer": "codebook", "bits": 4, "levels": 16}, 'codebook = "kmeans" takes one of bits and levels'),
    ({"quantizer": "codebook", "bits": 1.3, "dimension": 2}, "makes codes of 2.6 bits: an integer from 1 to 16"),
    ({"quantizer": "codebook", "bits": 4, "dimension": 8}, "makes codes of 32 bits: an integer from 1 to 16"),
    ({"quantizer": "codebook", "bits": 4, "group": 64}, 'quantizer = "codebook" takes no group'),
    ({"quantizer": "codebook", "bits": 4, "dimension": 9}, "dimension = 9: an integer from 1 to 8"),
    ({"quantizer": "nf4", "codebook": "fp4"}, 'quantizer = "nf4" with codebook = "fp4"'),
    ({"quantizer": "nf4", "bits": 3}, 'quantizer = "nf4" has 4 bits, not bits = 3: leave bits out'),
    ({"quantizer": "nf4", "dimension": 2}, 'codebook = "nf4" has dimension = 1'),
    ({"quantizer": "float8", "bits": 4}, 'quantizer = "float8" has 8 bits, not bits = 4'),
    ({"quantizer": "float8", "format": "e3m4"}, "format = 'e3m4': did you mean"),
    ({"quantizer": "mxfp4", "group": 16}, 'quantizer = "mxfp4" takes no group'),
    ({"quantizer": "mxfp4", "format": "e5m2"}, 'quantizer = "mxfp4" takes no format: leave it out, or take float8 or mxfp8'),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "says"), BAD, ids=lambda value: str(value)[:60])
def test_a_rule_that_makes_no_sense_says_so(keys, says):
    assert says in message(Recipe, **keys)


def test_the_place_of_a_mistake_is_named(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('[[rule]]\nname = "a"\nbits = 4\n\n[[rule]]\nbits = 4\nnmse = 0.1\n')
    assert message(Recipe.load, path).startswith(f"{path}: rule 2: ")
    assert message(Recipe.parse, path.read_text()).startswith("rule 2: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has one [[rule]] or more"),
        ("defaults = false", "has one [[rule]] or more"),
        ("[rule]\nbits = 4", "brackets doubled"),
        ("rule = [4]", "has one [[rule]] or more"),
        ("[[rules]]\nbits = 4", "unknown key 'rules': did you mean 'rule'?"),
        ("bits = 4", "'bits' stands before any rule: begin one with the line [[rule]]"),
        ("defaults = 1\n[[rule]]\nbits = 4", "defaults = 1: true or false"),
        ("[[rule]]\nbits = ", "a recipe is TOML: "),
        ("[[rule]]\nbits = 4\n[rule.name]\nx = 1", "rule 1: name = {'x': 1}: a name"),
        (
            '[[rule]]\nbits = 4\n[[rule]]\nname = "a"\nencoding = "lossless"',
            "rule 2 is never reached: rule 1 takes every",
        ),
    ],
)
def test_a_file_that_is_no_recipe_says_so(text, says, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    found = message(Recipe.load, path)
    assert found.startswith(f"{path}: ")
    assert says in found


def test_a_file_that_is_not_utf_8(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes('[[rule]]\nname = "ä"\nbits = 4\n'.encode("latin-1"))
    assert message(Recipe.load, path).startswith(f"{path}: a recipe is TOML in UTF-8: ")


@pytest.mark.parametrize(
    ("args", "keys", "says"),
    [
        ((), {}, "a recipe without rules: say what is asked for, like bits=4"),
        ((4.0,), {}, "rules = 4.0: a list of Rules will do"),
        ((), {"rules": [{"bits": 4}]}, "rule 1: a Rule is wanted, not {'bits': 4}"),
        ((), {"rules": [Rule(bits=4)], "nmse": 0.1}, "not both rules and nmse"),
        ((), {"bits": 4, "defaults": 0}, "defaults = 0: true or false"),
        ((), {"rules": [Rule(bits=4, name="*"), Rule(bits=3)]}, "rule 2 is never reached"),
    ],
)
def test_a_recipe_that_makes_no_sense_says_so(args, keys, says):
    assert says in message(Recipe, *args, **keys)


IN_TOML = [keys for keys, _ in GOOD + BAD if not any(value is None or value != value for value in keys.values())]


@pytest.mark.parametrize("keys", IN_TOML, ids=lambda value: str(value)[:60])
def test_toml_and_python_agree(keys):
    def outcome(make):
        try:
            return make()
        except ValueError as error:
            return str(error).removeprefix("rule 1: ")

    assert outcome(lambda: Recipe.parse(toml([keys]))) == outcome(lambda: Recipe(**keys))


def test_the_first_match_wins_and_none_means_lossless():
    recipe = Recipe.parse(
        toml(
            [
                {"name": "a.*", "encoding": "lossless"},
                {"name": ["*.x", "*.y"], "bits": 6},
                {"name": "*.x", "bits": 2},
                {"dtype": ["float32", "float16"], "bits": 5},
                {"shape": ["*", 384], "bits": 3},
                {"ndim": 3, "bits": 8},
                {"min_size": 10**6, "max_size": 2 * 10**6, "bits": 7},
            ]
        )
    )

    def bits(*args) -> float | None:
        rule = recipe.rule_for(spec(*args))
        return rule and rule.bits

    assert bits("a.x") is None
    assert bits("b.x") == 6
    assert bits("b.y") == 6
    assert bits("b", LARGE, "float16") == 5
    assert bits("b", (1000, 384)) == 3
    assert bits("b", (384, 1000)) is None
    assert bits("b", (10, 100, 384)) == 8
    assert bits("b", (1000, 999)) is None
    assert bits("b", (1000, 1000)) == 7
    assert bits("b", (2000, 1000)) == 7
    assert bits("b", (2000, 1001)) is None


def test_a_name_matches_itself_whatever_is_special_in_it():
    recipe = Recipe(name="layers[0].w", bits=4)
    assert recipe.rule_for(spec("layers[0].w")) is not None
    assert recipe.rule_for(spec("layers0.w")) is not None  # as a glob
    assert recipe.rule_for(spec("Layers0.w")) is None


def test_a_recipe_without_rules_leaves_everything():
    assert Recipe(rules=[]).rule_for(spec()) is None


MINILM = {
    "embeddings.position_ids": ((1, 512), "int64"),
    "embeddings.word_embeddings.weight": (30522, 384),
    "embeddings.position_embeddings.weight": (512, 384),
    "embeddings.token_type_embeddings.weight": (2, 384),
    "embeddings.LayerNorm.weight": (384,),
    "embeddings.LayerNorm.bias": (384,),
    **{
        f"encoder.layer.{layer}.{name}": shape
        for layer in range(6)
        for name, shape in {
            "attention.self.query.weight": (384, 384),
            "attention.self.query.bias": (384,),
            "attention.self.key.weight": (384, 384),
            "attention.self.key.bias": (384,),
            "attention.self.value.weight": (384, 384),
            "attention.self.value.bias": (384,),
            "attention.output.dense.weight": (384, 384),
            "attention.output.dense.bias": (384,),
            "attention.output.LayerNorm.weight": (384,),
            "attention.output.LayerNorm.bias": (384,),
            "intermediate.dense.weight": (1536, 384),
            "intermediate.dense.bias": (1536,),
            "output.dense.weight": (384, 1536),
            "output.dense.bias": (384,),
            "output.LayerNorm.weight": (384,),
            "output.LayerNorm.bias": (384,),
        }.items()
    },
    "pooler.dense.weight": (384, 384),
    "pooler.dense.bias": (384,),
}


def test_defaults_on_all_minilm_l6_v2():
    specs = [
        spec(name, *about) if isinstance(about[0], tuple) else spec(name, about, "float32")
        for name, about in MINILM.items()
    ]
    found = quantized(Recipe(bits=4), specs)
    assert len(found) == 39
    assert found == {
        one.name
        for one in specs
        if one.name.endswith(("dense.weight", "query.weight", "key.weight", "value.weight", "_embeddings.weight"))
        and "token_type" not in one.name
    }


# (name, shape, dtype, whether a rule for everything quantizes it)
OTHERS = [
    # Llama 3 8B
    ("model.embed_tokens.weight", (128256, 4096), "bfloat16", True),
    ("model.layers.0.input_layernorm.weight", (4096,), "bfloat16", False),
    ("model.layers.0.self_attn.q_proj.weight", (4096, 4096), "bfloat16", True),
    ("model.layers.0.self_attn.k_proj.weight", (1024, 4096), "bfloat16", True),
    ("model.layers.0.self_attn.v_proj.weight", (1024, 4096), "bfloat16", True),
    ("model.layers.0.self_attn.o_proj.weight", (4096, 4096), "bfloat16", True),
    ("model.layers.0.self_attn.rotary_emb.inv_freq", (64,), "float32", False),
    ("model.layers.0.post_attention_layernorm.weight", (4096,), "bfloat16", False),
    ("model.layers.0.mlp.gate_proj.weight", (14336, 4096), "bfloat16", True),
    ("model.layers.0.mlp.up_proj.weight", (14336, 4096), "bfloat16", True),
    ("model.layers.0.mlp.down_proj.weight", (4096, 14336), "bfloat16", True),
    ("model.norm.weight", (4096,), "bfloat16", False),
    ("lm_head.weight", (128256, 4096), "bfloat16", True),
    # mixtures of experts: Mixtral, DeepSeek, gpt-oss
    ("model.layers.0.block_sparse_moe.gate.weight", (8, 4096), "bfloat16", False),
    ("model.layers.0.block_sparse_moe.experts.0.w1.weight", (14336, 4096), "bfloat16", True),
    ("model.layers.3.mlp.gate.weight", (256, 7168), "bfloat16", False),
    ("model.layers.3.mlp.experts.0.gate_proj.weight", (2048, 7168), "float8_e4m3fn", False),
    ("model.layers.3.mlp.experts.0.gate_proj.weight_scale_inv", (512, 512), "float32", False),
    ("model.layers.0.mlp.router.weight", (128, 2880), "bfloat16", False),
    ("model.layers.0.mlp.experts.gate_up_proj_bias", (32, 5760), "bfloat16", False),
    ("model.layers.0.mlp.experts.gate_up_proj_blocks", (32, 5760, 90, 16), "uint8", False),
    # weights that are quantized already: GPTQ, MLX
    ("model.layers.0.mlp.up_proj.qweight", (512, 14336), "int32", False),
    ("model.layers.0.mlp.up_proj.scales", (32, 14336), "float16", False),
    ("model.layers.0.mlp.up_proj.biases", (14336, 64), "float16", False),
    # norms with two axes, and what is only called so
    ("model.layers.0.self_attn.q_norm.weight", (128, 128), "bfloat16", False),
    ("blocks.0.norm1.weight", (128, 128), "float32", False),
    ("transformer_blocks.0.norm1.linear.weight", (18432, 3072), "bfloat16", True),
    # state-space models, convolutions, the rest
    ("backbone.layers.0.mixer.A_log", (5120, 16), "float32", False),
    ("backbone.layers.0.mixer.conv1d.weight", (5120, 1, 4), "float32", False),
    ("backbone.layers.0.mixer.in_proj.weight", (10240, 2560), "float32", True),
    ("layer4.2.conv2.weight", (512, 512, 3, 3), "float32", True),
    ("table.of.one.axis", (65536,), "float32", False),
    ("mask", (1024, 1024), "bool", False),
    ("freqs_cis", (4096, 64), "complex64", False),
    ("just.too.small", (MIN_SIZE // 128, 127), "float32", False),
    ("just.large.enough", (MIN_SIZE // 128, 128), "float64", True),
    ("empty", (0, 4096), "float32", False),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "expected"), OTHERS, ids=[row[0] for row in OTHERS])
def test_defaults_on_other_models(name, shape, dtype, expected):
    assert (Recipe(bits=4).rule_for(spec(name, shape, dtype)) is not None) == expected


def test_every_default_rule_decides_about_one_of_them():
    specs = [spec(name, shape, dtype) for name, shape, dtype, _ in OTHERS]
    for rule in DEFAULTS:
        assert any([one for one in DEFAULTS if one.matches(tensor)] == [rule] for tensor in specs), rule


@pytest.mark.parametrize(
    "recipe", [Recipe(bits=4, defaults=False), Recipe.parse("defaults = false\n[[rule]]\nbits = 4")]
)
def test_without_the_defaults_a_rule_takes_what_it_says(recipe):
    rule = recipe.rule_for(spec("model.norm.weight", (7,)))
    assert rule == Rule(bits=4)


@pytest.mark.parametrize(
    ("keys", "tensor", "says"),
    [
        ({"bits": 4}, spec(dtype="int8"), "values of int8 cannot be quantized, only float16"),
        ({"bits": 4}, spec(dtype="float8_e5m2"), "values of float8_e5m2 cannot be quantized"),
        (
            {"quantizer": "affine", "bits": 4, "group": 100},
            spec(),
            "1024 values along the last axis are no multiple of groups of 100",
        ),
        (
            {"quantizer": "mxfp4"},
            spec(shape=(99, 48)),
            "48 values along the last axis are no multiple of groups of 32",
        ),
        (
            {"quantizer": "affine", "bits": 4, "tile": [8, 8]},
            spec(shape=(64, 64, 64)),
            "tile = [8, 8] is for matrices, and this tensor has 3 axes",
        ),
        ({"quantizer": "nvfp4"}, spec(shape=(99, 40)), "no multiple of groups of 16"),
        (
            {"quantizer": "codebook", "bits": 2, "dimension": 3},
            spec(),
            "1024 values along the last axis are no multiple of dimension = 3",
        ),
        ({"quantizer": "nf4"}, spec(shape=()), "1 values along the last axis are no multiple of groups of 64"),
    ],
)
def test_a_tensor_that_does_not_fit(keys, tensor, says, tmp_path):
    recipe = Recipe(rules=[Rule(name="other", bits=3), Rule(**keys)], defaults=False)
    found = message(recipe.rule_for, tensor)
    assert found.startswith("tensor 'w': ")
    assert says in found
    assert "(rule 2)" in found
    path = tmp_path / "recipe.toml"
    path.write_text("defaults = false\n" + toml([keys]))
    assert f"({path}: rule 1)" in message(Recipe.load(path).rule_for, tensor)

    assert Recipe(**keys, on_error="lossless", defaults=False).rule_for(tensor) is None


def test_tiles_may_be_cut_short():
    assert Recipe(quantizer="affine", bits=4, tile=[100, 100]).rule_for(spec()) is not None


def test_a_rule_that_exists_does_not_change():
    with pytest.raises(AttributeError):
        Rule(bits=4).bits = 3
    with pytest.raises(AttributeError):
        Recipe(bits=4).rules = ()

"""Move a fitted scikit-learn pipeline, transformers and all, into a release that takes requests.

    python examples/move_sklearn_pipeline.py

The pipeline is made up and fitted here; load yours instead, where you trust its pickle. Needs `pip install
'retailinfer[sklearn]' pandas`. docs/moving.md has the way step by step, docs/features.md what is copied.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import retailinfer as ri

REQUEST = {"amount": float, "age": float | None, "plan": str, "country": str | None}


def visits(n: int = 3_000, seed: int = 5) -> pd.DataFrame:
    """Made-up customers; some of them leave."""
    rng = np.random.default_rng(seed)
    plan = rng.choice(["free", "basic", "pro"], n, p=[0.5, 0.3, 0.2])
    age = np.round(rng.uniform(18, 80, n))
    amount = np.round(rng.lognormal(2, 1, n), 2)
    leaves = rng.random(n) < np.where(plan == "free", 0.4, 0.1) * (1 + (age < 30))
    country = pd.Series(rng.choice(["GB", "FR", "DE", "IS"], n, p=[0.5, 0.3, 0.19, 0.01]), dtype="str")
    return pd.DataFrame(
        {
            "amount": amount,
            "age": pd.Series(age).where(rng.random(n) > 0.1),
            "plan": pd.Series(plan, dtype="str"),
            "country": country.where(rng.random(n) > 0.05),
            "leaves": leaves,
        }
    )


def fitted(rows: pd.DataFrame) -> Pipeline:
    """What somebody handed over."""
    logarithm = FunctionTransformer(np.log1p, feature_names_out="one-to-one")
    columns = ColumnTransformer(
        [
            ("amount", make_pipeline(logarithm, StandardScaler()), ["amount"]),
            ("age", SimpleImputer(strategy="median", add_indicator=True), ["age"]),
            (
                "words",
                make_pipeline(
                    SimpleImputer(strategy="constant", fill_value="unknown"),
                    OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=50),
                ),
                ["plan", "country"],
            ),
        ]
    )
    model = RandomForestClassifier(40, max_depth=6, random_state=0)
    return Pipeline([("columns", columns), ("model", model)]).fit(rows[list(REQUEST)], rows["leaves"])


def main(folder: Path) -> None:
    """Copy the features, pack, and compare with the pipeline on rows that neither has seen."""
    past, later = visits(), visits(1_000, seed=6)
    pipeline = fitted(past)

    spec = ri.FeatureSpec.from_sklearn(pipeline, request=REQUEST, sample=past[list(REQUEST)])
    print(f"{len(spec.names)} columns: {', '.join(spec.names)}")
    manifest = ri.pack(
        "churn",
        model=pipeline,
        features=spec,
        policy=ri.Policy([("leave alone", 0.0), ("write", 0.3), ("call", 0.6)]),
        golden=past[list(REQUEST)],
        out=folder / "churn",
    )
    print(f"engine: {manifest.models[0].engine}, compared with its source: {manifest.models[0].parity}")

    with ri.Scorer.load(folder / "churn", trust="unsigned") as scorer:
        answers = scorer.score_table(later[list(REQUEST)])
        print(scorer.score_json(b'{"amount": 3.5, "age": null, "plan": "free", "country": "IS"}').decode())
    want = pipeline.predict_proba(later[list(REQUEST)])[:, 1]
    difference = np.abs(answers["score"].to_numpy() - want.astype(np.float32)).max()
    print(f"largest difference from the pipeline's own probabilities: {difference}")


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))

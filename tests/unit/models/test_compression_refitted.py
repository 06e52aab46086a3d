"""What is pushed after a refit: the chosen variant of the refitted weights; what was judged stays beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.keras import tf


def test_the_refitted_variant_takes_the_place_of_the_judged_one(transformed, tmp_path: Path) -> None:
    from components.compressor.refitted import replace_by_refitted
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.input_pipeline import load_training_data
    from models.trainer import train, user_histories
    from models.two_tower import load

    training = transformed.config.training.model_copy(update={"refit": True, "epochs": 1})
    config = transformed.config.model_copy(update={"training": training})
    data = load_training_data(transformed.patterns, transformed.transform_graph, config)
    trained = train(config, data)
    assert trained.refitted is not None
    serving, judged = tmp_path / "Format-Serving", tmp_path / "Format-TFMA"
    export_saved_model(
        str(serving),
        ServedTowers.of(trained.model),
        Catalogue(data.items.live, data.items.train_events),
        user_histories(data),
        transform_graph_dir=transformed.transform_graph,
    )
    trained.refitted.save(tmp_path / "training_refitted")
    replace_by_refitted(
        config,
        "bfloat16",
        refitted_dir=str(tmp_path / "training_refitted"),
        transformed_uri=str(Path(transformed.patterns["train"][0]).parent.parent),
        transform_graph_dir=transformed.transform_graph,
        serving_dir=str(serving),
        judged_dir=str(judged),
        training_dir=str(tmp_path / "training"),
    )
    for folder, model in ((judged, trained.model), (serving, trained.refitted)):
        served = tf.saved_model.load(str(folder)).signatures["embed_items"]
        vectors = served(item_ids=tf.constant(["i1", "i5"]))["embeddings"]
        np.testing.assert_allclose(vectors, model.candidate_vectors().numpy()[[1, 5]], rtol=0.01, atol=1e-3)
    assert np.abs(trained.model.candidate_vectors() - trained.refitted.candidate_vectors()).max() > 0.01
    pushed = load(tmp_path / "training")
    np.testing.assert_array_equal(pushed.candidate_vectors(), trained.refitted.candidate_vectors())

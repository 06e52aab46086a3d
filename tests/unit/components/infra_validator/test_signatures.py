from __future__ import annotations

from components.infra_validator.signatures import CONTRACT, Signature, Tensor, contract_violations


def contract() -> dict[str, Signature]:
    return {
        name: Signature(
            {key: Tensor(*value) for key, value in inputs.items()},
            {key: Tensor(*value) for key, value in outputs.items()},
        )
        for name, (inputs, outputs) in CONTRACT.items()
    }


def test_the_contract_keeps_itself() -> None:
    assert contract_violations(contract()) == []


def test_user_features_may_be_added_to_recommend_only() -> None:
    signatures = contract()
    more = {**signatures["recommend"].inputs, "country": Tensor("string", 1)}
    signatures["recommend"] = Signature(more, signatures["recommend"].outputs)
    assert contract_violations(signatures) == []
    more = {**signatures["recommend_user"].inputs, "country": Tensor("string", 1)}
    signatures["recommend_user"] = Signature(more, signatures["recommend_user"].outputs)
    assert contract_violations(signatures) == ["recommend_user: input 'country' is not in the contract"]


def test_violations_are_named() -> None:
    signatures = contract()
    del signatures["embed_items"]
    signatures["recommend_user"] = Signature(
        {"user_id": Tensor("int64", 1)}, {"item_ids": Tensor("string", 1), "scores": Tensor("float32", 2)}
    )
    assert contract_violations(signatures) == [
        "recommend_user: input 'user_id' is int64 of rank 1, not string of rank 1",
        "recommend_user: input 'k' is missing",
        "recommend_user: output 'item_ids' is string of rank 1, not string of rank 2",
        "signature 'embed_items' is missing; the model has ['embed_query', 'recommend', 'recommend_user', "
        "'serving_default', 'similar_items']",
    ]

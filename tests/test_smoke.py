async def test_a_chain_runs(node):
    result = await node.run(["a", "b", "c"], {"x": 1})
    assert result["status"] == "success"

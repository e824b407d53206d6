"""From sensitivities and costs to the assemblies worth building for one target."""
